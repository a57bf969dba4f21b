"""The command profile, and mistakes with latency limits and fronts: what they print, each as one line."""

import json
from pathlib import Path

import pytest
from reference.latency_tables import latency_table
from reference.processes import Run, command_line

from common.artifacts import PriorStore
from common.latency import read_table
from common.loading import load, with_adapt_overrides
from common.meta.prior import initial_prior

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--channels", "2", "--cells", "2", "--classes", "3", "--image-size", "8", "--repeats", "2", "--device", "cpu")
OPS = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    config = load("smoke", environment={})
    store = PriorStore(tmp_path / "run")
    store.save_config(config)
    store.save(initial_prior(config))
    return tmp_path / "run"


def test_profile_writes_a_table_and_says_how_well_it_fits(metasearch: Run, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    code, printed, said = metasearch("profile", "--out", str(out), "--ops", "darts", *SMALL, "--check", "2", "--json")
    assert code == 0
    content = json.loads(printed)
    table = read_table(out)
    assert content["table"] == table.model_dump(mode="json")
    assert table.primitives == OPS
    assert table.num_threads == 1 and table.num_repeats == 2
    assert len(content["check"]["measured_ms"]) == 2
    assert "rank correlation" in said and "median relative error" in said
    code, _, said = metasearch("profile", "--out", str(out), *SMALL)
    assert code == 4 and "is there; add --again" in said
    code, printed, said = metasearch("profile", "--out", str(out), *SMALL, "--check", "1", "--json")
    assert code == 0 and "it is checked, not measured" in said
    assert json.loads(printed)["check"]["rank_correlation"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--ops", "none"), 2, "--ops must be one of darts, base, base+"),
        (("--device", "tpu"), 2, "device must be auto, cpu or cuda"),
        (("--channels", "3"), 2, "channels"),
        (("--motif", "mnist"), 2, "motif must be one of cifar, imagenet"),
        (("--run", "nowhere"), 3, "nowhere"),
    ],
)
def test_profile_refuses_mistakes_in_a_line(
    metasearch: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, _, said = metasearch("profile", "--out", str(tmp_path / "t.json"), *arguments)
    assert found == code and words in said and "Traceback" not in said
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--max-latency-ms", "5"), 2, "--max-latency-ms goes with --latency-table"),
        (("--latency-table", "TABLE"), 2, "--latency-table goes with --max-latency-ms"),
        (("--max-latency-ms", "0", "--latency-table", "TABLE"), 2, "max_latency_ms"),
        (("--max-latency-ms", "0.5", "--latency-table", "TABLE"), 2, "the smallest network has 9 ms"),
        (("--max-latency-ms", "5", "--latency-table", "OTHER"), 2, "cells of 4 nodes, space.num_nodes is 2"),
        (("--max-latency-ms", "5", "--latency-table", "none.json"), 3, "metasearch profile --out none.json"),
        (("--max-params", "10", "--derive", "sample"), 2, "limits need the derivation top2_pairs"),
        (("--set", "inner.steps=3"), 2, "--set changes fields of adapt here"),
        (("--set", 'adapt.cost={measure="latency", target=1, weight=1}'), 2, "adapt.cost: the measure latency needs"),
        (("--set", 'adapt.cost={measure="macs", target=1, weight=1, table="TABLE"}'), 2, "the others take none"),
    ],
)
def test_adapt_refuses_mistakes_with_limits_before_it_computes(
    metasearch: Run, run_folder: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    names = [name for name in load("smoke", environment={}).space.ops if name != "none"]
    for name, nodes in (("TABLE", 2), ("OTHER", 4)):
        text = latency_table(tuple(names), lambda op, shape: 0.4, num_nodes=nodes).to_json()
        (run_folder / f"{name}.json").write_text(text)
    given = [
        argument.replace("TABLE", str(run_folder / "TABLE.json")).replace("OTHER", str(run_folder / "OTHER.json"))
        for argument in arguments
    ]
    found, _, said = metasearch(
        "adapt", "--run", str(run_folder), "--data", "digits", "--classes", "1,2,3", "--train-per-class", "5", *given
    )
    assert found == code and words in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--measure", "watts"), "--measure must be params, macs or latency"),
        (("--measure", "latency"), "table: the measure latency needs one"),
        (("--measure", "macs", "--limits", "a,b"), "--limits takes numbers separated by commas"),
        (("--measure", "macs", "--weights", "0,1"), "target: a penalty needs one"),
        (("--measure", "macs", "--limits", "1"), "max_macs is 1, the smallest network has"),
        (("--measure", "macs", "--set", "epochs=1"), "--set changes the recipe of --train"),
        (("--measure", "macs", "--train", "smoke", "--set", "epochs=0"), "epochs"),
    ],
)
def test_pareto_refuses_mistakes_before_it_computes(
    metasearch: Run, run_folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    task = ("--run", str(run_folder), "--data", "digits", "--classes", "1,2,3", "--train-per-class", "5")
    found, _, said = metasearch("pareto", *task, *arguments)
    assert found == 2 and words in said and "Traceback" not in said
    assert not (run_folder / "pareto").exists()


def test_a_penalty_is_set_field_by_field_with_a_tables_file(tmp_path: Path) -> None:
    config = load("smoke", environment={})
    names = tuple(name for name in config.space.ops if name != "none")
    table = latency_table(names, lambda op, shape: 0.4)
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    fields = ["measure=latency", "target=5", "weight=2", f'table="{path}"']
    changed = with_adapt_overrides(config, [f"adapt.cost.{field}" for field in fields])
    assert changed.adapt.cost is not None
    assert changed.adapt.cost.table == table
    assert changed.model_copy(update={"adapt": config.adapt}) == config
    trained = load("smoke", [f"inner.cost.{field}" for field in fields], environment={})
    assert trained.inner.cost == changed.adapt.cost
