"""A run of everything, tiny and in this process: from the meta-training to the page; and what is not run is said."""

import json
import time
from contextlib import contextmanager

import pytest
import torch

from common.artifacts import PriorStore
from common.config import DatasetRef, validate
from common.errors import ConflictError
from common.evaluate_config import load_evaluate_config
from common.loading import preset_tree
from coordinator import study
from coordinator.calls import Outcome
from coordinator.evaluations import evaluate_all
from coordinator.experiment import fresh_tasks
from coordinator.local import LocalExecutor
from coordinator.paper.experiments import (
    ROWS,
    FourthFigure,
    ImageSet,
    PaperConfig,
    Tuning,
    figure4_family,
)
from coordinator.paper.images import prepare_images
from coordinator.paper.outcome import collect_outcome
from coordinator.paper.plain import plain
from coordinator.paper.publish import publish
from coordinator.paper.steps import carry_out, figure4_arms, stored_prior
from coordinator.sinks import JsonLinesSink
from workers.data.sources import load_arrays
from workers.data.whole import load_whole
from workers.job import run_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

ALL_DIGITS = DatasetRef(source="digits")
SMALL = ["channels=2", "image_size=16", "epochs=1", "train_per_class=8", "test_per_class=5", "auxiliary_weight=0.0"]


def tiny() -> PaperConfig:
    tree = preset_tree("paper_smoke")
    tree |= {"rounds": 1, "space": {"num_nodes": 2}}
    tree["network"] |= {"channels": 2, "heads": {8: 2, 12: 2, 16: 4}}
    tree["inner"]["steps"] = tree["adapt"]["steps"] = 1
    for family, size in zip(tree["families"], (8, 12, 16), strict=True):
        family |= {"data": {"source": "digits", "unseen_fraction": 0.5}, "image_size": size, "num_ways": 3}
        family |= {"train_per_class": 5, "test_per_class": 4, "tasks_per_round": 1}

    def image_set(name, **changes):
        tuning = Tuning(num_ways=10, steps=1, train_per_class=4, test_per_class=2)
        fields = {"search_size": 16, "tuning": tuning, "recipe": load_evaluate_config("smoke", SMALL)}
        return ImageSet(**{"name": name, "data": ALL_DIGITS, "stand_in": f"digits for {name}", **fields, **changes})

    config = validate(tree)
    return PaperConfig(
        scale="tiny",
        study=config,
        num_posteriors=2,
        figure3_tasks=2,
        figure4=FourthFigure(num_epochs=1, repeats=2, train_per_class=4, test_per_class=4),
        cifar10=image_set("CIFAR10"),
        svhn=image_set("SVHN"),
        imagenet=image_set(
            "ImageNet",
            data=config.families[2].data,
            num_unseen_classes=4,
            tuning=Tuning(num_tasks=2, num_ways=3, steps=1, train_per_class=4, test_per_class=2),
        ),
    )


class ThisProcess:
    """Computes here what workers would; counts what it is asked for."""

    num_workers = 1

    def __init__(self):
        self.executor = LocalExecutor(torch.device("cpu"))
        self.asked = []
        self.waiting = []

    def train(self, run, config, prior):
        self.asked.append("train")
        sink = JsonLinesSink(run / "rounds.jsonl", prior.version)
        study.run(prior, config, self.executor, PriorStore(run), [sink], time.monotonic)
        sink.close()

    def adapt(self, prior, requests, label):
        self.asked.append(label)
        return list(self.executor.run(prior, requests))

    def evaluate(self, requests, label):
        self.asked.append(label)
        found = evaluate_all(self, requests, max_attempts=1)
        return [found[request.job_id] for request in requests]

    @property
    def num_pending(self):
        return len(self.waiting)

    def submit(self, key, request, prior):
        self.waiting.append((key, request))

    def poll(self, timeout_s):
        key, request = self.waiting.pop(0)
        return [Outcome(key, run_evaluation(request, torch.device("cpu")))]

    def give_up(self):
        self.waiting.clear()


@pytest.fixture(scope="module")
def workers():
    return ThisProcess()


def run(target, folder, workers, config=None):
    @contextmanager
    def opened():
        yield workers

    carry_out(config or tiny(), target, folder, opened, lambda text: None)
    return collect_outcome(folder)


@pytest.fixture(scope="module")
def one_target(shared_image_cache, tmp_path_factory, workers):
    """A run of the cells alone, and its outcome."""
    folder = tmp_path_factory.mktemp("paper")
    outcome = run("cells", folder, workers)
    publish(outcome, folder)
    return folder, outcome


@pytest.fixture(scope="module")
def everything(one_target, workers):
    """The same run, gone on with to everything."""
    folder, _ = one_target
    before = list(workers.asked)
    outcome = run("all", folder, workers)
    publish(outcome, folder)
    return folder, outcome, workers.asked[len(before) :]


def test_what_a_target_does_not_need_is_marked_as_not_run(one_target):
    _, outcome = one_target
    assert all(cell.genotype is not None for cell in outcome.cells)
    assert outcome.figure3 is None and outcome.figure4 is None
    assert all(row.trained is None and row.why_not.startswith("not run") for t in outcome.tables for row in t.rows)
    content = json.loads(json.dumps(plain(outcome)))
    assert {row["run"] for table in content["tables"].values() for row in table["rows"]} == {None}


def test_another_target_computes_only_what_is_missing(everything):
    _, _, asked = everything
    assert "train" not in asked and "Adapting: imagenet32" not in asked
    assert {"Adapting: imagenet64", "Figure 4: base", "Figure 4: frozen", "Figure 4: scratch"} <= set(asked)
    assert {"Table 1: CIFAR10", "Table 2: SVHN"} <= set(asked)


def test_every_row_with_an_architecture_is_trained_and_tested(everything):
    _, outcome, _ = everything
    for table in outcome.tables:
        filled = [row for row in table.rows if row.trained is not None]
        assert [row.row for row in filled] == [
            own
            for paper in dict.fromkeys(row.published.name for row in table.rows)
            for own in ROWS[table.name]
            if own.published == paper
        ]
        for row in filled:
            assert row.trained.error_low <= row.trained.error <= row.trained.error_high
            assert row.trained.num_test == (4 if table.name == "imagenet" else 10) * 5
    released = next(row for row in outcome.tables[0].rows if row.row is not None and row.row.key == "released")
    assert released.at_paper_size.num_params == 3_145_490


def test_the_page_has_the_papers_figures_and_the_runs(everything):
    folder, outcome, _ = everything
    text = (folder / "paper.html").read_text()
    assert "2.83" in text and "digits for CIFAR10 stand in for the paper" in text
    assert "not run" in text and "<script" not in text and "http://" not in text.replace("http://www.w3.org", "")
    (row,) = (row for row in outcome.tables[1].rows if row.row is not None and row.row.key == "svhn_tuned")
    assert f"{row.trained.error:.1f}" in text
    stored = json.loads((folder / "results.json").read_text())
    assert stored["tables"]["cifar10"]["images_are_the_papers"] is False
    assert len(stored["figure3"]["weights"]["points"]) == 8
    for name in ("figures/figure2", "figures/figure3", "figures/figure4", "cells/prior", "cells/CIFAR_TUNED"):
        assert (folder / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (folder / f"{name}.svg").read_bytes()


def test_a_complete_run_starts_no_workers(everything):
    folder, outcome, _ = everything

    def unopened():
        raise AssertionError("nothing is left to compute")

    carry_out(tiny(), "all", folder, unopened, lambda text: None)
    again = plain(collect_outcome(folder))
    assert again == plain(outcome)


def test_a_run_of_other_settings_is_refused(one_target, workers):
    folder, _ = one_target
    with pytest.raises(ConflictError, match="--run"):
        run("all", folder, workers, tiny().model_copy(update={"figure3_tasks": 3}))


def test_arms_of_figure_4_differ_in_what_they_are_named_for(one_target):
    folder, _ = one_target
    config = tiny()
    prior = stored_prior(folder, config)
    base, frozen, scratch = figure4_arms(config, prior).values()
    assert base.inner == frozen.inner and base.learns_alpha and not frozen.learns_alpha
    assert scratch.prior.version == 0 and scratch.inner.relaxation == "softmax"
    assert scratch.inner.batch_size == base.inner.batch_size and scratch.inner.level == base.inner.level
    first, second = fresh_tasks(figure4_family(config), "all", 2, 7)
    assert set(first.classes) == set(second.classes) and first.seed != second.seed


def test_a_search_never_sees_test_images(one_target):
    folder, _ = one_target
    config = tiny()
    images = prepare_images(config, folder)
    search = load_arrays(images.search["cifar10"], 16)
    whole = load_whole(images.trained["cifar10"], config.cifar10.recipe)
    test = {image.tobytes() for image in whole.test.gather(torch.arange(whole.test.num_images).numpy())}
    seen = {image.tobytes() for part in search.parts for image in part}
    assert len(test) == 50 and len(seen) == 80
    assert not test & seen
