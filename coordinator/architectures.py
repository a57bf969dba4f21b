"""The most probable architectures of a stored posterior."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from common.config import SpaceConfig, explain
from common.derivation import Probabilities, top_genotypes
from common.errors import InvalidInputError, NotFoundError, UnavailableError
from common.space.topology import Topology
from common.sweep_plan import Candidate

CONFIG, RESULT = "config.json", "result.json"
_MOST_NODES = 16


def candidates_of(source: str, top: int) -> tuple[Candidate, ...]:
    """The `top` most probable architectures, all different, most probable first.

    Args:
        source: a run's folder, whose latest prior is taken; or the result.json of an adaptation, or a folder with one.
        top: how many.

    Raises:
        NotFoundError: there is nothing of the kind.
        InvalidInputError: the file holds no posterior, or its space has fewer architectures.
    """
    path = Path(source)
    if (path / CONFIG).is_file():
        from common.artifacts import PriorStore

        store = PriorStore(path)
        config = store.load_config()
        return most_probable(prior_probabilities(store.load(), config), config.space, top)
    file = path / RESULT if path.is_dir() else path
    if not file.is_file():
        raise NotFoundError(
            f"there is no posterior at {source!r}; give a run's folder, or the result.json of an adaptation"
        )
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UnavailableError(f"cannot read {file}: {error}") from None
    except ValueError as error:
        raise InvalidInputError(f"{file} is not JSON: {error}") from None
    return most_probable(*posterior_of(content, str(file)), top)


def most_probable(probabilities: Probabilities, space: SpaceConfig, top: int) -> tuple[Candidate, ...]:
    """See `candidates_of`.

    Raises:
        InvalidInputError: the space has fewer architectures.
    """
    found = top_genotypes(probabilities, space, top)
    if len(found) < top:
        raise InvalidInputError(f"the space has {len(found)} architectures, top is {top}; lower it")
    return tuple(Candidate(genotype=each.genotype, probability=each.probability) for each in found)


def prior_probabilities(prior: Any, config: Any) -> Probabilities:
    """The probabilities of ops under a prior, (num_edges, num_ops) by kind of cell.

    Raises:
        InvalidInputError: the study learns no architecture.
    """
    from common.meta.posterior import probabilities

    if not prior.has_architecture:
        raise InvalidInputError(
            f"the study learns no architecture, its few_shot.network is {config.few_shot.network!r}; take one whose "
            "network is 'supernet'"
        )
    space = config.space
    matrices = probabilities(prior.alpha(config), space.topology, space.normalisation).numpy()
    return dict(zip(space.cell_kinds, matrices, strict=True))


def posterior_of(content: Any, name: str) -> tuple[Probabilities, SpaceConfig]:
    """The posterior in the result of an adaptation, and a space that it is of.

    Raises:
        InvalidInputError: it holds none.
    """
    try:
        posterior = content["architecture_posterior"]
        matrices = {str(kind): np.array(rows, dtype=np.float64) for kind, rows in posterior["probabilities"].items()}
        (num_edges,) = {len(matrix) for matrix in matrices.values()}
        num_nodes = next(nodes for nodes in range(1, _MOST_NODES + 1) if Topology(nodes).num_edges == num_edges)
        space = SpaceConfig.model_validate(
            {
                "primitives": posterior["ops"],
                "num_nodes": num_nodes,
                "cell_kinds": {kind: 2 if kind == "reduction" else 1 for kind in matrices},
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        reason = explain(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        raise InvalidInputError(
            f"{name} holds no architecture posterior ({reason}); give the result.json of metasearch adapt or submit"
        ) from None
    return matrices, space
