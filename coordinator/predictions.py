"""What a few-shot job answers, as tables for people."""

import json
from collections.abc import Iterator

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Column, Table

from coordinator.api.stubs import search_pb2 as pb


def few_shot_summary(result: pb.FewShotResult) -> Iterator[RenderableType]:
    """The predictions, then what they were made with."""
    if result.predictions:
        yield _predictions(result)
    if result.num_queries > len(result.predictions):
        yield f"{len(result.predictions)} of {result.num_queries} predictions; all are in predictions.json"
    if result.genotype_json:
        for kind, nodes in json.loads(result.genotype_json)["cells"].items():
            text = " | ".join(" + ".join(f"{edge['primitive']}({edge['source']})" for edge in node) for node in nodes)
            entropy = f"  (entropy {result.entropy_nats[kind]:.2f} nats)" if kind in result.entropy_nats else ""
            yield f"{kind}: {text}{entropy}"
    statistics = pb.BatchStatistics.Name(result.statistics).removeprefix("BATCH_STATISTICS_").lower()
    losses = result.support_losses_nats
    course = f", loss of the support images {losses[0]:.3f} to {losses[-1]:.3f} nats before the last" if losses else ""
    yield (
        f"{result.steps} steps from prior version {result.prior_version}{course}; {statistics} BatchNorm; "
        f"{result.num_params:,} parameters; {result.seconds:.2f} s on the worker ({result.path} cells)"
    )


def _predictions(result: pb.FewShotResult) -> Table:
    """A row for each query: its label, and the class that would be next."""
    table = Table(
        *(Column(name, overflow="fold") for name in ("query", "label", "probability", "next")), show_edge=False
    )
    for found in result.predictions:
        order = sorted(range(len(result.classes)), key=lambda index: found.probabilities[index], reverse=True)
        second = f"{escape(result.classes[order[1]])} {found.probabilities[order[1]]:.2f}"
        table.add_row(escape(found.name), escape(found.label), f"{found.probability:.2f}", second)
    return table
