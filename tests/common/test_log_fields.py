"""Fields of log lines."""

import threading
from pathlib import Path

from common.log_fields import log_fields
from common.telemetry import logger_for


def lines_of(path: Path) -> list[str]:
    """What was logged, without times."""
    return [line.partition(" INFO metasearch.test-fields ")[2] for line in path.read_text().splitlines()]


def test_lines_within_the_block_carry_the_fields_of_all_blocks_around_them(tmp_path: Path) -> None:
    logger = logger_for("test-fields", tmp_path / "log")
    with log_fields(worker="worker-0", job=None):
        logger.info("idle")
        with log_fields(job="0193", round=4):
            logger.info("adapts %d tasks", 2)
        logger.info("idle again")
    logger.info("gone")
    assert lines_of(tmp_path / "log") == [
        "idle worker=worker-0",
        "adapts 2 tasks worker=worker-0 job=0193 round=4",
        "idle again worker=worker-0",
        "gone",
    ]


def test_a_value_that_would_not_be_one_word_is_quoted(tmp_path: Path) -> None:
    logger = logger_for("test-fields", tmp_path / "log")
    with log_fields(task='a to b="c"', note=""):
        logger.info("begins")
    assert lines_of(tmp_path / "log") == [r'begins task="a to b=\"c\"" note=""']


def test_the_fields_of_one_thread_are_not_those_of_another(tmp_path: Path) -> None:
    logger = logger_for("test-fields", tmp_path / "log")
    with log_fields(job="0193"):
        thread = threading.Thread(target=lambda: logger.info("elsewhere"))
        thread.start()
        thread.join()
    assert lines_of(tmp_path / "log") == ["elsewhere"]


def test_fields_stand_before_the_trace_of_an_error(tmp_path: Path) -> None:
    logger = logger_for("test-fields", tmp_path / "log")
    with log_fields(job="0193"):
        try:
            raise ValueError("broken")
        except ValueError:
            logger.exception("failed")
    first, *rest = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("ERROR metasearch.test-fields failed job=0193")
    assert rest[0].startswith("Traceback") and rest[-1] == "ValueError: broken"
