"""Where metrics go: files that survive a crash and a resume, a line for people, event files, gauges."""

import json
import logging
import struct

import pytest
from reference.recorded_metrics import RecordedMetrics
from tensorboardX.proto.event_pb2 import Event, SessionLog

from common.metrics import RAY_METRICS, RETRIES, ROUND_GAUGES, ROUND_SECONDS, RPCS, RetryCause
from coordinator.sinks import JsonLinesSink, LogSink, RayMetricsSink, TensorBoardSink, read_lines
from workers import ray_metrics
from workers.ray_metrics import RayMetrics


def metrics(version, **changes):
    return {
        "prior_version": version,
        "round_seconds": 1.25,
        "tau": 0.5,
        "tasks_accepted": 3,
        "tasks_rejected": 1,
        "train_loss_first": 2.0,
        "train_loss_last": 1.5,
        "update_norm": 0.1,
        "images_per_second": 640.0,
        "alpha_entropy/normal": 1.0,
        "alpha_entropy/reduction": 2.0,
        "parameter_free_ops/normal": 4,
        "strongest_op_edges/normal/skip_connect": 5,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    """Writes rounds through a new sink, as a run (or a resumed one) does, and returns the file."""
    path = tmp_path / "run" / "metrics.jsonl"

    def run(versions, after_version=0, **changes):
        sink = JsonLinesSink(path, after_version)
        for version in versions:
            sink.record(version, metrics(version, **changes))
        sink.close()
        return path

    return run


# JSON lines


def test_every_round_is_one_line_with_every_metric(write):
    path = write([1, 2])
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [metrics(1), metrics(2)]
    assert read_lines(path) == [metrics(1), metrics(2)]


def test_a_round_can_be_read_before_the_sink_is_closed(tmp_path):
    sink = JsonLinesSink(tmp_path / "metrics.jsonl", 0)
    sink.record(1, metrics(1))
    try:
        assert read_lines(tmp_path / "metrics.jsonl") == [metrics(1)]
    finally:
        sink.close()


def test_rounds_beyond_the_resumed_version_are_replaced(write):
    write([1, 2, 3, 4], tau=5.0)
    rounds = read_lines(write([3, 4, 5], after_version=2, tau=0.25))
    assert [(line["prior_version"], line["tau"]) for line in rounds] == [
        (1, 5.0), (2, 5.0), (3, 0.25), (4, 0.25), (5, 0.25)
    ]  # fmt: skip


def test_rounds_beyond_the_resumed_version_are_gone_at_once(write):
    write([1, 2, 3])
    assert [line["prior_version"] for line in read_lines(write([], after_version=1))] == [1]


def test_a_new_study_keeps_nothing(write):
    write([1, 2, 3])
    assert write([], after_version=0).read_text() == ""


@pytest.mark.parametrize("keep", [1, 20, -2])
def test_a_last_line_that_a_crash_cut_short_is_left_out_and_written_over(write, keep):
    path = write([1, 2, 3])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:keep])
    assert [line["prior_version"] for line in read_lines(path)] == [1, 2]
    assert [line["prior_version"] for line in read_lines(write([3, 4], after_version=2))] == [1, 2, 3, 4]
    assert len(path.read_text().splitlines()) == 4


def test_a_file_that_is_not_there_has_no_rounds(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == []


# The log


@pytest.fixture
def log(caplog):
    logger = logging.getLogger("test_sinks")
    logger.setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, logger="test_sinks"):
        yield logger, caplog


def test_a_round_is_one_line_of_the_log(log):
    logger, records = log
    sink = LogSink(logger, num_rounds=50)
    sink.record(7, metrics(7))
    sink.close()
    # The entropy is the mean over kinds of cell, (1 + 2) / 2.
    assert records.messages == [
        "round 7/50  loss 2.000 -> 1.500  accepted 3  rejected 1  tau 0.50  entropy 1.500  1.2 s"
    ]


def test_the_log_line_of_a_few_shot_round_has_its_query_images(caplog):
    logger = logging.getLogger("metasearch.test-few-shot-line")
    with caplog.at_level(logging.INFO, logger.name):
        without = {name: each for name, each in metrics(7).items() if not name.startswith("alpha_entropy")}
        LogSink(logger, num_rounds=50).record(7, {**without, "query_loss": 0.7512, "query_accuracy": 0.68})
    assert caplog.messages == [
        "round 7/50  loss 2.000 -> 1.500  query loss 0.751 accuracy 0.680  accepted 3  rejected 1  1.2 s"
    ]


def test_the_log_line_says_what_a_schedule_cost(caplog):
    logger = logging.getLogger("metasearch.test-schedule-line")
    with caplog.at_level(logging.INFO, logger.name):
        sink = LogSink(logger, num_rounds=50)
        without = {name: each for name, each in metrics(7).items() if not name.startswith("alpha_entropy")}
        sink.record(7, {**without, "staleness_mean": 1.25, "staleness_max": 4, "tasks_late": 0})
        sink.record(8, {**without, "staleness_mean": 0.0, "staleness_max": 0, "tasks_late": 2})
    assert [message.partition("  rejected 1  ")[2] for message in caplog.messages] == [
        "staleness 1.2 (at most 4)  1.2 s",
        "late 2  1.2 s",
    ]


# Event files


def events_of(folder):
    """Events of all files of a folder, oldest file first: TFRecords of length, checksum, event, checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        start = 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            found.append(Event.FromString(data[start + 12 : start + 12 + length]))
            start += length + 16
    return found


def scalars_of(events):
    return {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}


def test_every_metric_of_every_round_can_be_read_back_from_the_event_file(tmp_path):
    sink = TensorBoardSink(tmp_path / "tensorboard", after_version=0)
    for version in (1, 2):
        sink.record(version, metrics(version))
    sink.close()
    expected = {(version, name): value for version in (1, 2) for name, value in metrics(version).items()}
    assert scalars_of(events_of(tmp_path / "tensorboard")) == pytest.approx(expected, rel=1e-6)


def test_a_round_is_in_the_event_file_before_the_sink_is_closed(tmp_path):
    sink = TensorBoardSink(tmp_path / "tensorboard", after_version=0)
    try:
        sink.record(1, metrics(1))
        assert scalars_of(events_of(tmp_path / "tensorboard"))[1, "tau"] == 0.5
    finally:
        sink.close()


def test_a_resumed_run_tells_tensorboard_to_hide_the_rounds_that_run_again(tmp_path):
    sink = TensorBoardSink(tmp_path / "tensorboard", after_version=4)
    sink.record(5, metrics(5))
    sink.close()
    starts = [
        event.step for event in events_of(tmp_path / "tensorboard") if event.session_log.status == SessionLog.START
    ]
    assert starts == [5]


# Ray's metrics


def test_a_run_exports_its_rounds_under_its_name_and_no_tenant():
    recorded = RecordedMetrics()
    sink = RayMetricsSink("mine", recorded)
    sink.record(3, metrics(3))
    sink.close()
    assert recorded.gauges["tau", "", "mine"] == 0.5
    assert recorded.gauges["alpha_entropy", "", "mine", "reduction"] == 2.0
    assert recorded.gauges["strongest_op_edges", "", "mine", "normal", "skip_connect"] == 5
    assert recorded.observed == {("round_seconds",): [1.25]}


def test_ray_is_told_of_metrics_with_their_labels_and_of_counters_from_the_start(monkeypatch):
    told = {}

    class Told:
        def __init__(self, name, description, *rest):
            *self.buckets, self.keys = rest
            told[name] = self
            self.values = []

        def note(self, value, labels):
            assert set(labels) == set(self.keys)
            self.values.append((value, labels))

        inc = set = observe = note

    for kind in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(ray_metrics, kind, Told)
    exported = RayMetrics(RAY_METRICS)
    assert set(told) == {f"metasearch_{metric.name}" for metric in RAY_METRICS}
    causes = told["metasearch_retries"].values
    assert {labels["cause"] for _, labels in causes} == set(RetryCause)
    assert 5.0 + sum(value for value, _ in causes) == 5.0, "too little to be seen in any sum"
    exported.add(RETRIES, 2, cause="paused")
    exported.add(RETRIES, 0, cause="paused")
    assert causes[len(RetryCause) :] == [(2, {"cause": "paused"})], "Ray takes no zero"
    exported.observe(ROUND_SECONDS, 3)
    exported.set(ROUND_GAUGES["tau"], 1, tenant="", study="mine")
    assert told["metasearch_round_seconds"].values == [(3.0, {})]
    assert told["metasearch_round_seconds"].buckets == [list(ROUND_SECONDS.buckets)]
    assert told["metasearch_tau"].values == [(1.0, {"tenant": "", "study": "mine"})]
    with pytest.raises(KeyError):
        exported.add(RPCS, method="GetJob", code="OK")
