"""Metrics by name, where they go, and logging."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from common.log_fields import FieldsFormatter

METRICS = "Prometheus metrics:"  # begins what a log says of where they are

# What rounds of few-shot studies measure beside all else. Query images count after the last inner step, with the
# noise-free architecture; their batch statistics are those of `few_shot.evaluation`. The steps of method reptile take
# them too, so under it they are not held out.
FEW_SHOT_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "query_loss": "Cross-entropy of the query images, nats, mean over few-shot tasks",
        "query_accuracy": "Accuracy on the query images, 0 to 1, mean over few-shot tasks",
    }
)
# Every metric of a round. Names end in their unit where they have one; `/` separates a label.
ROUND_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "prior_version": "Version of the prior that the round made",
        "round_seconds": "Wall clock from plan to new prior",
        "tau": "Temperature that the round's tasks used",
        "tasks_accepted": "Updates that entered the prior",
        "tasks_rejected": "Updates that did not",
        "tasks_stale": "Of these, updates that were too stale for buffered mode",
        "tasks_late": "Tasks that were given up after the round's deadline",
        "staleness_mean": "Versions made since the tasks began, mean over the updates that entered",
        "staleness_max": "The same of the stalest",
        "train_loss_first": "Objective at the first step, nats, mean over tasks",
        "train_loss_last": "Objective at the last step, nats, mean over tasks",
        "update_norm": "Length of the move of all weights",
        "images_per_second": "Training images per second of a worker, mean over tasks",
        "alpha_entropy": "Mean entropy of the architecture's categoricals, nats, by kind of cell",
        "parameter_free_ops": "Pooling and skip ops of the derived cell, by kind of cell",
        "strongest_op_edges": "Edges on which an op is the most probable one, by kind of cell and op",
        **FEW_SHOT_METRICS,
    }
)


class MetricSink(Protocol):
    """Takes the metrics of each round."""

    def record(self, version: int, values: Mapping[str, float]) -> None:
        """Stores `values` under the version of the prior that they belong to."""
        ...

    def close(self) -> None:
        """Flushes; nothing is recorded after it."""
        ...


def metric_name(name: str) -> str:
    """The catalogue's name of a metric with labels: the part before the first `/`."""
    return name.partition("/")[0]


def query_summary(values: Mapping[str, float]) -> str:
    """A few-shot round's query images in words."""
    return f"loss {values['query_loss']:.3f} accuracy {values['query_accuracy']:.3f}"


def logger_for(component: str, log_file: Path | None = None) -> logging.Logger:
    """A logger that writes one line per record, with the fields of `common.log_fields`, to standard error or to a file.

    In an actor, standard error is what the Ray dashboard shows as its log.
    """
    logger = logging.getLogger(f"metasearch.{component}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if log_file is not None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers = [logging.FileHandler(log_file, encoding="utf-8")]
    for handler in handlers:
        handler.setFormatter(FieldsFormatter())
        logger.addHandler(handler)
    return logger
