"""A run of everything, tiny and in this process: from the meta-training to the page; and what is not run is said."""

import json
import time
from contextlib import contextmanager

import pytest
import torch

from common.artifacts import PriorStore
from common.config import ClusterConfig, DatasetRef, validate
from common.errors import ConflictError
from common.evaluate_config import load_evaluate_config
from common.loading import load, preset_tree
from coordinator import driver, study
from coordinator.calls import Outcome
from coordinator.evaluations import evaluate_all
from coordinator.experiment import fresh_tasks
from coordinator.local import LocalExecutor
from coordinator.meta_test import opened_log, outcome_of
from coordinator.paper.experiments import (
    ROWS,
    FourthFigure,
    ImageSet,
    PaperConfig,
    Tuning,
    figure4_family,
)
from coordinator.paper.few_shot import FewShotTable
from coordinator.paper.images import prepare_images
from coordinator.paper.outcome import collect_outcome
from coordinator.paper.plain import plain
from coordinator.paper.publish import publish
from coordinator.paper.steps import begin, carry_out, figure4_arms, stored_prior
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
    brief = ["few_shot.steps=1", "few_shot.test_steps=1", "families.0.tasks_per_round=1"]
    search = load("few_shot_smoke", ["rounds=1", "space.num_nodes=4", "space.profile=darts", *brief], environment={})
    four = {"network": "four_convolutions", "filters": 4}
    baselines = {
        name: validate(search.model_dump() | {"few_shot": {**four, "method": method, "steps": 1, "test_steps": 1}})
        for name, method in (("maml", "exact"), ("reptile", "reptile"))
    }
    few_shot = FewShotTable(
        stand_in="digits for Mini-ImageNet",
        search=search,
        network=search.network,
        baselines=baselines,
        rounds=1,
        repeats=2,
        episodes=4,
    )
    return PaperConfig(
        scale="tiny",
        study=config,
        num_posteriors=2,
        figure3_tasks=2,
        figure4=FourthFigure(num_epochs=1, repeats=2, train_per_class=4, test_per_class=4),
        cifar10=image_set("CIFAR10"),
        svhn=image_set("SVHN"),
        few_shot=few_shot,
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
        self.most_episodes = 1000  # of one call, which Ctrl-C ends then

    def train(self, run, config, prior):
        self.asked.append("train")
        sink = JsonLinesSink(run / "rounds.jsonl", prior.version)
        study.run(prior, config, self.executor, PriorStore(run), [sink], time.monotonic)
        sink.close()

    def adapt(self, prior, requests, label):
        self.asked.append(label)
        return list(self.executor.run(prior, requests))

    def meta_test(self, folder, prior, requests, done):
        self.asked.append(f"test of {len(requests)}")
        with opened_log(folder) as log:
            for result in self.executor.run(prior, requests[: self.most_episodes]):
                log.add(outcome_of(result))
        return len(requests) <= self.most_episodes

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
    few_shot = [cell for cell in outcome.cells if cell.genotype is None]
    assert {(cell.key, cell.origin) for cell in few_shot} == {
        ("base_softmax", "not run yet: metasearch paper table4"),
        ("base_gumbel", "not run yet: metasearch paper table4"),
    }
    assert all(row.tested is None and row.why_not.startswith("not run") for row in outcome.few_shot.rows)
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


@pytest.fixture(scope="module")
def table4(tmp_path_factory, shared_image_cache):
    """A run of table 4 alone, interrupted once, and its outcome; what was asked for after that."""
    folder = tmp_path_factory.mktemp("table4")
    workers = ThisProcess()
    workers.most_episodes = 1
    with pytest.raises(KeyboardInterrupt):
        run("table4", folder, workers)
    workers.most_episodes, workers.asked = 1000, []
    outcome = run("table4", folder, workers)
    publish(outcome, folder)
    return folder, outcome, workers.asked


def test_table_4_is_run_by_itself_and_goes_on(table4):
    folder, outcome, asked = table4
    # MAML's network was trained and one of its four episodes learnt before the interruption.
    assert asked[0] == "test of 3"
    # Two searches and five networks, two times, less the one that was there.
    assert asked.count("train") == 2 * 7 - 1 and asked.count("test of 4") == 2 * 5 - 1
    assert not (folder / "meta").exists() and outcome.meta is None
    carry_out(tiny(), "table4", folder, None, lambda text: None)  # a complete run starts no workers


def test_rows_of_table_4_have_means_over_the_same_episodes(table4):
    folder, outcome, _ = table4
    for row in outcome.few_shot.rows:
        tests = [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted((folder / "few_shot" / row.row.key).glob("*/training/test/*/episodes.jsonl"))
        ]
        means = [100 * sum(each["accuracy"][-1] for each in test) / 4 for test in tests]
        assert list(row.tested.by_repeat) == pytest.approx(means)
        assert row.tested.accuracy == pytest.approx(sum(means) / 2)
        assert row.tested.low <= row.tested.accuracy <= row.tested.high
        assert row.tested.evaluation == "transductive" and row.tested.num_episodes == 4
        assert set(row.tested.paths) <= {"native", "pytorch"} and row.tested.paths
        assert (row.tested.search_s is not None) == (row.row.variant is not None)
    four_convolutions = [row for row in outcome.few_shot.rows if row.row.baseline is not None]
    assert [row.at_paper_size[0].num_params for row in four_convolutions] == [121_093] * 2  # of 5 classes, 84 pixels
    assert all(row.tested.paths == ("pytorch",) for row in four_convolutions)


def test_the_page_has_table_4_and_says_what_it_is_of(table4):
    folder, outcome, _ = table4
    text = (folder / "paper.html").read_text()
    assert "66.2 ± 0.7" in text and "63.11 ± 0.92" in text and "digits for Mini-ImageNet stand in for the paper" in text
    assert "transductive" in text and "T-NAS" in text
    gumbel = outcome.few_shot.rows[-1]
    assert f"{gumbel.tested.accuracy:.1f} ({gumbel.tested.low:.1f} to {gumbel.tested.high:.1f})" in text
    stored = json.loads((folder / "results.json").read_text())["table4"]
    assert stored["rows"][-1]["run"]["accuracy_percent"] == gumbel.tested.accuracy
    assert stored["images_are_the_papers"] is False and len(stored["split_sha256"]) == 64
    assert (folder / "cells" / "base_gumbel.png").exists()


def test_table_4_and_the_others_may_be_configured_one_after_the_other(table4, tmp_path):
    config = tiny()
    begin(config, "table4", tmp_path)
    (tmp_path / "few_shot").mkdir()
    other = config.model_copy(update={"figure3_tasks": 3, "few_shot": config.few_shot.model_copy(update={"rounds": 9})})
    merged = begin(other, "cells", tmp_path)
    assert merged.figure3_tasks == 3 and merged.few_shot == config.few_shot
    with pytest.raises(ConflictError, match="--run"):
        begin(other, "table4", tmp_path)


def test_a_run_of_another_version_is_refused_in_one_line(tmp_path):
    begin(tiny(), "table4", tmp_path)
    content = json.loads((tmp_path / "paper.json").read_text())
    del content["config"]["few_shot"]
    (tmp_path / "paper.json").write_text(json.dumps(content))
    with pytest.raises(ConflictError, match=r"another version.*few_shot.*--run"):
        begin(tiny(), "table4", tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_fill_table_4_with_the_same_figures(table4, tmp_path):
    import ray
    from rich.console import Console

    _, expected, _ = table4
    config = tiny()
    config = config.model_copy(update={"few_shot": config.few_shot.model_copy(update={"repeats": 1})})
    handle = driver.start_coordinator("test-table4", ClusterConfig(num_workers=2, gpus_per_worker=0))
    try:
        session = driver.Session(None, handle, Console(quiet=True), 2)
        found = run("table4", tmp_path, session, config)
        # A progress bar of the next call begins with nothing of the last one, which was a test.
        assert ray.get(handle.progress.remote()).metrics == {}
    finally:
        ray.kill(handle)
    for row, other in zip(found.few_shot.rows, expected.few_shot.rows, strict=True):
        assert row.genotypes[:1] == other.genotypes[:1]
        assert row.tested.by_repeat == other.tested.by_repeat[:1]
