"""Where a round's metrics go: a log with one line per round, JSON lines, TensorBoard events, Ray's metrics."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from common.metrics import ROUND_EXPORTS, MetricRecorder, record_round
from common.storage import ArtifactFolder
from common.telemetry import metric_name, query_summary
from workers.ray_metrics import RayMetrics


class LogSink:
    """One line per round for people."""

    def __init__(self, logger: logging.Logger, num_rounds: int) -> None:
        self._logger = logger
        self._num_rounds = num_rounds

    def record(self, version: int, values: Mapping[str, float]) -> None:
        """See `MetricSink.record`."""
        entropies = [value for name, value in values.items() if metric_name(name) == "alpha_entropy"]
        parts = [
            f"round {version}/{self._num_rounds}",
            f"loss {values['train_loss_first']:.3f} -> {values['train_loss_last']:.3f}",
            *([f"query {query_summary(values)}"] if "query_accuracy" in values else []),
            f"accepted {values['tasks_accepted']:.0f}",
            f"rejected {values['tasks_rejected']:.0f}",
            *([f"late {values['tasks_late']:.0f}"] if values.get("tasks_late") else []),
            *([_staleness(values)] if values.get("staleness_max") else []),
            *([f"tau {values['tau']:.2f}", f"entropy {sum(entropies) / len(entropies):.3f}"] if entropies else []),
            f"{values['round_seconds']:.1f} s",
        ]
        self._logger.info("%s", "  ".join(parts))

    def close(self) -> None:
        """See `MetricSink.close`."""


def _staleness(values: Mapping[str, float]) -> str:
    return f"staleness {values['staleness_mean']:.1f} (at most {values['staleness_max']:.0f})"


class JsonLinesSink:
    """Every metric of every round, one JSON object per line; after a resume, rounds that run again replace theirs."""

    def __init__(self, path: Path, after_version: int) -> None:
        kept = [line for line in read_lines(path) if line["prior_version"] <= after_version]
        ArtifactFolder(path.parent).write(path.name, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def record(self, version: int, values: Mapping[str, float]) -> None:
        """See `MetricSink.record`."""
        self._file.write(json.dumps(dict(values)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `MetricSink.close`."""
        self._file.close()


def read_lines(path: Path) -> list[dict[str, float]]:
    """Metrics of a run, round by round; a last line that a crash cut short is left out."""
    rounds: list[dict[str, float]] = []
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            try:
                rounds.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rounds


class TensorBoardSink:
    """Event files; `tensorboard --logdir RUN/tensorboard` shows them."""

    def __init__(self, folder: Path, after_version: int) -> None:
        # purge_step hides what an interrupted run wrote beyond its last checkpoint.
        self._writer = SummaryWriter(logdir=str(folder), purge_step=after_version + 1)

    def record(self, version: int, values: Mapping[str, float]) -> None:
        """See `MetricSink.record`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, version)
        self._writer.flush()

    def close(self) -> None:
        """See `MetricSink.close`."""
        self._writer.close()


class RayMetricsSink:
    """Metrics that Ray exports to Prometheus, for the dashboard. Only within a Ray actor or driver.

    Args:
        run: names the study among others; it has no tenant.
        recorder: takes them; Ray where not given.
    """

    def __init__(self, run: str, recorder: MetricRecorder | None = None) -> None:
        self._recorder = RayMetrics(ROUND_EXPORTS) if recorder is None else recorder
        self._labels = {"tenant": "", "study": run}

    def record(self, version: int, values: Mapping[str, float]) -> None:
        """See `MetricSink.record`."""
        record_round(self._recorder, values, self._labels)

    def close(self) -> None:
        """See `MetricSink.close`."""
