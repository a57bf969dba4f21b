"""The command sweep: mistakes are one line, before Ray starts, and leave no run behind."""

import json
from pathlib import Path

import pytest
import ray
from reference.processes import Run, command_line

from common.errors import ConflictError, InvalidInputError, NotFoundError
from coordinator.html_report.collect import collect
from coordinator.html_report.page import page
from coordinator.sweep_cli import table_of

FILE = 'study = "smoke"\ntrials = 2\n[space]\n"inner.steps" = { choice = [1, 2] }\n'


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def no_ray(*arguments: object, **options: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", no_ray)
    return command_line(capsys, monkeypatch)


@pytest.mark.parametrize(
    ("content", "options", "code", "words"),
    [
        (None, (), 2, "name a FILE or --architectures, or add --resume"),
        (None, ("--resume",), 3, "holds no sweep"),
        (None, ("--resume", "--top", "3"), 2, "--top: .* says what is tried"),
        (FILE.replace("inner.steps", "inner.stepz"), (), 2, "inner.stepz = 1: .*no such field"),
        (FILE.replace("[1, 2]", "[0]"), (), 2, "inner.steps = 0: .*greater than or equal to 1"),
        (FILE.replace('study = "smoke"', ""), (), 2, "names no study"),
        (FILE.replace("smoke", "smok"), (), 3, "no preset or file 'smok'"),
        (FILE, ("--set", "families.0.num_ways=9"), 2, "classes"),
        (FILE, ("--data", "digits"), 2, "--data goes with --architectures"),
        (FILE, ("--architectures", "somewhere"), 2, r"has a \[space\]"),
        (None, ("--architectures", "nowhere", "--data", "digits", "--recipe", "smoke"), 3, "no posterior at 'nowhere'"),
        (None, ("--architectures", "nowhere"), 2, "architectures.data is missing; add it, or --data"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(
    metasearch: Run, tmp_path: Path, content: str | None, options: tuple[str, ...], code: int, words: str
) -> None:
    import re

    arguments = []
    if content is not None:
        (tmp_path / "sweep.toml").write_text(content)
        arguments = [str(tmp_path / "sweep.toml")]
    found, _, err = metasearch("sweep", *arguments, "--run", str(tmp_path / "run"), *options)
    assert found == code and code in (InvalidInputError.exit_code, NotFoundError.exit_code)
    last = err.strip().splitlines()[-1]
    assert re.search(words, last), err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_sweep_is_not_begun_again(metasearch: Run, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(FILE)
    (tmp_path / "sweep.json").write_text("{}")
    code, _, err = metasearch("sweep", str(tmp_path / "sweep.toml"), "--run", str(tmp_path))
    assert code == ConflictError.exit_code and "add --resume" in err


ROWS = [
    {"trial": 0, "state": "stopped", "rounds": 1, "value": 0.5, "interval_95": [0.25, 0.75], "failure": ""},
    {"trial": 1, "state": "complete", "rounds": 2, "value": 0.7, "interval_95": None, "failure": ""},
    {"trial": 2, "state": "failed", "rounds": 0, "value": None, "interval_95": None, "failure": "lr <huge>"},
]
CONTENT = {
    "kind": "sweep",
    "metric": "accuracy",
    "mode": "max",
    "unit": "rounds",
    "num_trials": 3,
    "searcher": "random",
    "scheduler": "asha",
    "is_over": True,
    "seconds": 3.0,
    "best": 1,
    "keys": ["inner.theta.lr", "relaxation.kind"],
    "trials": [
        {
            **row,
            "values": {"inner.theta.lr": 10.0**-index, "relaxation.kind": "gumbel" if index else "softmax"},
            "curve": [{"rounds": number + 1, "accuracy": 0.4 + 0.1 * number} for number in range(row["rounds"])],  # type: ignore[call-overload]
        }
        for index, row in enumerate(ROWS)
    ],
}


def test_the_table_starts_with_the_best_trial() -> None:
    table = table_of(CONTENT)
    assert list(table.columns[0].cells) == ["1", "0", "2"]
    assert list(table.columns[3].cells) == ["0.700", "0.500 (0.250-0.750)", ""]
    assert next(iter(table.columns[4].cells)) == "inner.theta.lr = 0.1\nrelaxation.kind = gumbel"


def test_a_report_draws_the_trials_and_every_swept_field(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(CONTENT))
    html = page(collect(tmp_path))
    for words in (
        "3 of 3: 1 stopped, 1 complete, 1 failed",
        "accuracy over rounds",
        "accuracy over inner.theta.lr",
        "accuracy over relaxation.kind",
        "1 (best)",
        "failed: lr &lt;huge&gt;",
    ):
        assert words in html
    assert html.count("<title>trial 1: 0.7</title>") == 2, "a point of each field's chart"
