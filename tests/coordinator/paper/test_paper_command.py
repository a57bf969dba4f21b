"""The command paper: what it offers, what full scale costs, and refusals as one line."""

from pathlib import Path

import pytest
from reference.processes import Run, command_line


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return command_line(capsys, monkeypatch)


def test_help_explains_every_target(metasearch: Run) -> None:
    code, out, _ = metasearch("paper", "--help")
    assert code == 0
    for target in ("cifar10", "svhn", "imagenet", "figure2", "figure3", "figure4", "cells", "all", "table4"):
        assert f"{target}:" in out
    assert "few-shot" in out and "Examples:" in out


def test_full_scale_says_its_cost_and_refuses_without_consent(metasearch: Run, tmp_path: Path) -> None:
    code, _, err = metasearch("paper", "figure3", "--scale", "full")
    assert code == 2
    assert "GPU-hours" in err and "192.0" in err and "add --yes" in err
    assert list(tmp_path.iterdir()) == []


def test_full_scale_without_imagenet_says_how_to_get_it(metasearch: Run, tmp_path: Path) -> None:
    code, _, err = metasearch("paper", "cifar10", "--scale", "full", "--yes")
    assert code == 2
    message = err.splitlines()[-1]
    assert message.startswith("Error: --scale full needs imagenet at 32 pixels")
    assert "metasearch data prepare" in message and "--imagenet" in message
    missing = tmp_path / "nowhere"
    code, _, err = metasearch("paper", "cifar10", "--scale", "full", "--yes", "--imagenet", str(missing))
    assert code in (2, 3) and str(missing) in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_table_4_at_full_scale_says_its_cost_and_needs_mini_imagenet(metasearch: Run, tmp_path: Path) -> None:
    code, _, err = metasearch("paper", "table4", "--scale", "full")
    assert code == 2
    assert "Search by Gumbel-softmax" in err and "Meta-training, as the paper" not in err and "add --yes" in err
    images = tmp_path / "images"
    images.mkdir()
    code, _, err = metasearch("paper", "table4", "--scale", "full", "--yes", "--mini-imagenet", str(images))
    assert code == 3
    message = err.splitlines()[-1]
    assert message.startswith("Error: --scale full needs mini_imagenet at 84 pixels") and "--mini-imagenet" in message
    assert list(tmp_path.iterdir()) == [images]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table5",), "TARGET must be one of cifar10"),
        (("all", "--scale", "huge"), "--scale must be one of smoke, full, got 'huge'"),
        (("all", "--imagenet", "prepared"), "--imagenet goes with --scale full"),
        (("table4", "--mini-imagenet", "images"), "--mini-imagenet goes with --scale full"),
    ],
)
def test_mistakes_are_one_line(metasearch: Run, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = metasearch("paper", *arguments)
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and message in err
