"""Where log records go."""

from pathlib import Path

import pytest

from common.telemetry import ROUND_METRICS, logger_for, metric_name


def test_a_log_file_gets_one_line_per_record_and_standard_error_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "train.log"
    logger_for("test-file", path).info("round %d", 3)
    (line,) = path.read_text().splitlines()
    assert line.endswith("INFO metasearch.test-file round 3")
    assert capsys.readouterr().err == ""


def test_asking_again_for_a_logger_replaces_where_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger_for("test-again", tmp_path / "first.log")
    logger_for("test-again").warning("to the terminal")
    assert (tmp_path / "first.log").read_text() == ""
    assert capsys.readouterr().err.count("to the terminal") == 1


def test_the_catalogue_knows_a_metric_by_its_name_without_labels() -> None:
    assert metric_name("strongest_op_edges/normal/max_pool_3x3") in ROUND_METRICS
    assert metric_name("tau") in ROUND_METRICS
