"""An evaluation: trains the full network of a genotype on a source from scratch, tests it, stores what came out.

A run's folder:
    evaluation.json    what is evaluated: genotype, recipe, source; written first
    checkpoints/       see `workers.checkpoint`
    network/           the trained network, see `common.network_config`
    result.json        what was found, see `describe`; written last
    random-0/, ...     the same for random genotypes of equal size, where they are asked for
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from common.config import DatasetRef, Frozen
from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.evaluate_config import EvaluateConfig
from common.network_config import FullNetworkConfig
from common.nn.counting import count_network
from common.nn.stored import save_network
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import MAX_POOL, NONE, PROFILES
from common.space.topology import NUM_CELL_INPUTS
from common.storage import ArtifactFolder
from common.streams import stream
from common.value_file import ValueFile
from workers.data.whole import WholeSource, load_whole
from workers.environment import environment
from workers.parallel import Alone, ProcessGroup
from workers.score import Score
from workers.training import TrainOutcome, TrainProgress, train

RESULT = "result.json"
CHECKPOINTS = "checkpoints"
NETWORK = "network"

# Random genotypes whose parameters differ by no more than this share are of equal size.
SIZE_TOLERANCE = 0.1
_CHUNK = 50_000
_MAX_CHUNKS = 40


class EvaluationPlan(Frozen):
    """What is evaluated."""

    name: str
    """Of the genotype, for people."""
    genotype: Genotype
    config: EvaluateConfig
    data: DatasetRef
    num_random: int = Field(0, ge=0)
    """Random genotypes of equal size that are trained the same way, to compare with."""


PLAN = ValueFile(EvaluationPlan, "evaluation.json", "holds no evaluation; start one without --resume")


def evaluate(
    plan: EvaluationPlan,
    folder: ArtifactFolder,
    device: torch.device,
    group: ProcessGroup | None = None,
    on_progress: Callable[[TrainProgress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
    clock_s: Callable[[], float] = time.monotonic,
) -> dict[str, Any] | None:
    """Trains, tests and stores the plan's genotype; goes on with what an earlier call left in the folder.

    Args:
        plan: what to evaluate; its random genotypes are none of this call's business.
        folder: for the results.
        device: to compute on.
        group: processes that train together; the first one alone stores.
        on_progress: see `workers.training.train`.
        should_stop: see there.
        clock_s: see there.

    Returns:
        What result.json holds; None where it was stopped, and has left a checkpoint.

    Raises:
        InvalidInputError: the source or the recipe does not fit; see `workers.training.train`.
        MetaSearchError: of the other kinds, see `workers.data.whole.load_whole` and `workers.training.train`.
    """
    group = group or Alone()
    source = load_whole(plan.data, plan.config)
    checkpoints = ArtifactFolder(f"{folder.url}/{CHECKPOINTS}")
    outcome = train(plan.genotype, plan.config, source, checkpoints, device, group, on_progress, should_stop, clock_s)
    if outcome.tested is None:
        return None
    content = describe(plan, source, outcome, group.world_size)
    if group.rank == 0:
        stored = save_network(ArtifactFolder(f"{folder.url}/{NETWORK}"), outcome.network)
        content["network"]["sha256"] = stored.sha256
        folder.write(RESULT, json.dumps(content, indent=2, allow_nan=False).encode())
    return content


def stored_result(folder: ArtifactFolder) -> dict[str, Any] | None:
    """What result.json holds; None where there is none yet.

    Raises:
        CorruptArtifactError: it is not JSON.
    """
    try:
        content: dict[str, Any] = json.loads(folder.read(RESULT))
    except NotFoundError:
        return None
    except ValueError as error:
        raise CorruptArtifactError(f"{folder.path(RESULT)} is damaged: {error}; remove it") from None
    return content


def describe(plan: EvaluationPlan, source: WholeSource, outcome: TrainOutcome, num_processes: int) -> dict[str, Any]:
    """What result.json says of a training that has ended: plain values."""
    assert outcome.tested is not None
    count = count_network(plan.genotype, outcome.network.config)
    state = outcome.state
    return {
        "name": plan.name,
        **_tested(outcome.tested),
        "without_average": None if outcome.tested_without_average is None else _tested(outcome.tested_without_average),
        "evaluation_mode": "inductive: BatchNorm by its running statistics",
        "ended_by": outcome.ended_by,
        "epochs": state.epoch,
        "steps": state.steps_done,
        "train_s": state.seconds,
        "learning_curve": [record.model_dump(mode="json") for record in state.history],
        "curve_images": "validation" if source.validation.num_images else "test",
        "network": {
            "num_params": count.total.num_params,
            "num_params_with_auxiliary": count.num_params_with_auxiliary,
            "num_macs": count.total.num_macs,
            "config": outcome.network.config.model_dump(mode="json"),
        },
        "genotype": plan.genotype.model_dump(mode="json"),
        "data": {
            **plan.data.model_dump(mode="json", include={"source", "root"}),
            "fingerprint": source.arrays.fingerprint,
            "classes": list(source.arrays.class_names),
            "num_train": source.train.num_images,
            "num_validation": source.validation.num_images,
            "num_test": source.test.num_images,
            "test_is_published": source.test_is_published,
        },
        "inputs": {
            "pixels": "0 to 1, minus mean, divided by deviation; channel by channel",
            "mean": list(outcome.standardisation.mean),
            "deviation": list(outcome.standardisation.deviation),
        },
        "config": plan.config.model_dump(mode="json"),
        "num_processes": num_processes,
        "environment": environment(),
    }


def random_genotypes(
    genotype: Genotype, network: FullNetworkConfig, num_genotypes: int, seed: int
) -> tuple[Genotype, ...]:
    """Genotypes drawn uniformly from those whose networks have as many parameters as that of `genotype`, to 10 %.

    Per node two different (source, op) pairs, of the ops of the smallest search space that has those of `genotype`, but
    none; as many nodes per kind of cell as `genotype` has. No genotype is drawn twice, nor is `genotype`.

    Args:
        genotype: to compare with.
        network: all else of the networks.
        num_genotypes: how many to draw.
        seed: draws them; more of them start with the same ones.

    Raises:
        InvalidInputError: too few of that size were met.
    """
    wanted = count_network(genotype, network).total.num_params
    used = {edge.primitive for nodes in genotype.cells.values() for node in nodes for edge in node}
    space = next(ops for ops in PROFILES.values() if used <= set(ops))
    ops = tuple(name for name in space if name != NONE)
    empty, costs = _edge_costs(genotype, network, ops)
    found: list[Genotype] = []
    # By far most genotypes are of another size: cells are drawn as numbers, and only those that fit are built.
    for chunk in range(_MAX_CHUNKS if num_genotypes else 0):
        random = stream(seed, "random genotypes", chunk)
        sizes = np.full(_CHUNK, empty)
        drawn: dict[str, list[NDArray[np.int64]]] = {}
        for kind, nodes in genotype.cells.items():
            drawn[kind] = []
            for node in range(len(nodes)):
                pairs = _distinct_pairs(random, len(ops) * (NUM_CELL_INPUTS + node))
                drawn[kind].append(pairs)
                sizes += costs[kind][pairs].sum(axis=1)
        for index in np.flatnonzero(np.abs(sizes - wanted) <= SIZE_TOLERANCE * wanted):
            candidate = Genotype(
                cells={kind: tuple(_edges(pairs[index], ops) for pairs in nodes) for kind, nodes in drawn.items()}
            )
            if candidate not in (genotype, *found):
                found.append(candidate)
            if len(found) == num_genotypes:
                return tuple(found)
    if len(found) < num_genotypes:
        raise InvalidInputError(
            f"of {_MAX_CHUNKS * _CHUNK} random genotypes {len(found)} have {wanted} parameters to "
            f"{SIZE_TOLERANCE:.0%}; ask for no more of them"
        )
    return ()


def _edge_costs(
    genotype: Genotype, network: FullNetworkConfig, ops: tuple[str, ...]
) -> tuple[int, dict[str, NDArray[np.int64]]]:
    """Parameters of a network without any in its nodes, and what an op adds to it.

    Returns:
        The first; and per kind of cell int64 (num_sources * num_ops,), by source, then op. Costs add up, and differ
        between sources only in whether the op reads an input of its cell.
    """

    def count(kind: str, source: int, op: str) -> int:
        pool = GenotypeEdge(source=0, primitive=MAX_POOL)
        cells = {name: [(pool,)] * len(nodes) for name, nodes in genotype.cells.items()}
        # In the last node, which sees every source.
        cells[kind][-1] = (GenotypeEdge(source=source, primitive=op),)
        changed = Genotype(cells={name: tuple(nodes) for name, nodes in cells.items()})
        return count_network(changed, network).total.num_params

    empty = count(next(iter(genotype.cells)), 0, MAX_POOL)
    costs = {}
    for kind, nodes in genotype.cells.items():
        num_sources = NUM_CELL_INPUTS + len(nodes) - 1
        by_source = [[count(kind, source, op) - empty for op in ops] for source in range(num_sources)]
        costs[kind] = np.array(by_source, dtype=np.int64).ravel()
    return empty, costs


def _distinct_pairs(random: np.random.Generator, num_choices: int) -> NDArray[np.int64]:
    """int64 (_CHUNK, 2): two different numbers below `num_choices` each, ascending, all pairs equally likely."""
    first = random.integers(0, num_choices, _CHUNK)
    second = random.integers(0, num_choices - 1, _CHUNK)
    second += second >= first
    return np.sort(np.stack([first, second], axis=1), axis=1)


def _edges(pair: NDArray[np.int64], ops: tuple[str, ...]) -> tuple[GenotypeEdge, ...]:
    chosen = (divmod(int(number), len(ops)) for number in pair)
    return tuple(GenotypeEdge(source=source, primitive=ops[op]) for source, op in chosen)


def _tested(tested: Score) -> dict[str, Any]:
    return {
        "accuracy": tested.accuracy,
        "interval_95": list(tested.interval()),
        "num_correct": tested.num_correct,
        "num_test": tested.num_images,
        "loss_nats": tested.loss_nats,
    }
