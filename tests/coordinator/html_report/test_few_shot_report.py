"""The page of a few-shot run: what query images showed, and no architecture where none was learnt."""

import time
from pathlib import Path

import pytest
from reference.priors import few_shot_results, smoke_config

from common.artifacts import PriorStore
from coordinator import study
from coordinator.html_report.collect import collect
from coordinator.html_report.page import page
from coordinator.sinks import JsonLinesSink

NODE = '[{source=0, primitive="sep_conv_3x3"}, {source=1, primitive="skip_connect"}]'
NETWORKS = {
    "supernet": 'network="supernet"',
    "genotype": f'network="genotype", genotype={{cells={{normal=[{NODE}, {NODE}], reduction=[{NODE}, {NODE}]}}}}',
    "four_convolutions": 'network="four_convolutions"',
}


class MadeUpExecutor:
    """Yields made-up meta-gradients."""

    max_workers = 1

    def run(self, prior, requests):
        yield from few_shot_results(prior, requests)


def folder_of(network: str, folder: Path) -> Path:
    options = ("checkpoint.keep_last=10", "cluster.tasks_per_partial_sum=1")
    config = smoke_config(f"few_shot={{{NETWORKS[network]}}}", *options)
    store = PriorStore(folder)
    sink = JsonLinesSink(folder / "rounds.jsonl", 0)
    study.run(study.begin(store, config), config, MadeUpExecutor(), store, [sink], time.monotonic)
    sink.close()
    return folder


@pytest.mark.parametrize("network", NETWORKS)
def test_a_few_shot_run_has_a_page(network: str, tmp_path: Path) -> None:
    report = collect(folder_of(network, tmp_path / "run"))
    assert report.rounds[-1]["query_accuracy"] == 0.5
    assert report.weight_components is not None
    assert (report.architecture_components is not None) == (network == "supernet")
    assert (report.found is not None) == (network != "four_convolutions")
    html = page(report)
    assert "Query accuracy in the last round" in html and "50.0 %" in html
    assert "Accuracy on the query images of a round&#x27;s tasks" in html
    assert ("The study learns weights alone" in html) == (network != "supernet")
    assert "holds no intact prior" not in html
