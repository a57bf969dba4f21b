"""`metasearch demo` and `metasearch doctor` as a user runs them, the demo with a tiny network."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image
from reference.processes import METASEARCH, command_line, environment_without_ray

from common.artifacts import PriorStore
from common.config import StudyConfig
from common.loading import load
from coordinator import doctor, study
from coordinator.cluster import Cluster
from coordinator.local import LocalExecutor
from workers.device import choose_device

pytestmark = pytest.mark.ray

TINY = ["rounds=2", "network.channels=2", "space.num_nodes=2", "inner.steps=2"]


def metasearch(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [METASEARCH, *arguments], capture_output=True, text=True, timeout=200, env=environment_without_ray()
    )


def trained_here(config: StudyConfig, folder: Path) -> str:
    """SHA-256 of the prior that this process makes, without a service and a protocol between."""
    store = PriorStore(folder / "here")
    prior = study.run(study.begin(store, config), config, LocalExecutor(choose_device()), store, [], time.monotonic)
    return prior.digest()


def test_demo_leaves_results_that_agree_with_its_tables(tmp_path: Path) -> None:
    run = tmp_path / "demo"
    done = metasearch("demo", "--run", str(run), *(part for setting in TINY for part in ("--set", setting)))
    assert done.returncode == 0, done.stderr
    assert "Ray dashboard: http://127.0.0.1:" in done.stderr

    result = json.loads((run / "result.json").read_text())
    assert result["prior"] == {"version": 2, "sha256": trained_here(load("demo", TINY, environment={}), tmp_path)}
    assert set(result["genotype"]["cells"]) == {"normal", "reduction"}
    assert len(result["panels"]) == 2
    for title, arms in result["panels"].items():
        assert title in done.stderr
        assert set(arms) == {"from the prior", "from scratch"}
        for curve in arms.values():
            assert set(curve) == {"0", "1", "2", "5", "10", "20"}
            assert curve["0"]["mean"] == pytest.approx(0.1), "a fresh classifier of ten classes guesses"
            assert all(0 <= point["low"] <= point["mean"] <= point["high"] <= 1 for point in list(curve.values())[1:])
            assert f"{curve['20']['mean']:.2f} ± " in done.stderr
    again = metasearch("demo", "--run", str(run), *(part for setting in TINY for part in ("--set", setting)))
    assert again.returncode == 0, again.stderr
    assert "trained already" in again.stderr
    assert json.loads((run / "result.json").read_text())["panels"] == result["panels"], "finished jobs are found again"
    for name in ("curves.png", "cells.png"):
        with Image.open(run / name) as image:
            assert image.width > 600 and image.height > 200


def test_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    done = metasearch("doctor", "--run", str(tmp_path / "runs"), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["fit"]
    states = {finding["subject"]: finding for finding in report["findings"]}
    assert {"devices", "free memory", "artifact store", "image cache", "fonts", "Ray"} <= set(states)
    assert states["Ray"]["remedy"] == "" and states["fonts"]["remedy"] == ""


def test_doctor_says_what_to_do_about_storage_that_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here, and without a Ray cluster, which the test above starts.
    monkeypatch.setattr(doctor, "connect", lambda address: Cluster(None, needs_token=False, is_local=True))
    monkeypatch.setattr(doctor, "disconnect", lambda: None)
    (tmp_path / "runs").write_text("a file where a folder should be")
    code, out, _ = command_line(capsys, monkeypatch)("doctor", "--run", str(tmp_path / "runs"), "--json")
    assert code == 5
    report = json.loads(out)
    assert not report["fit"]
    store = next(finding for finding in report["findings"] if finding["subject"] == "artifact store")
    assert "--run" in store["remedy"]
