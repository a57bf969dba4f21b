"""What each step of the coordinator costs in seconds, and how many bytes a study moves. Figures are fitted to measured
ones by `tests/benchmarks/fit_costs.py`."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from common.config import Frozen, NonNegativeFloat, StudyConfig, explain
from common.errors import InvalidInputError, NotFoundError
from common.meta.params import HEAD_PREFIX
from common.meta.prior import initial_prior


class Costs(Frozen):
    """Seconds of the coordinator's one thread; `_per_byte` of a vector's bytes."""

    provenance: str = "default"
    """Where, when and by what they were measured."""

    turn_s: NonNegativeFloat = 4e-6
    """A turn of the dispatcher, beside all that follows, however many jobs are at hand."""
    poll_s: NonNegativeFloat = 1e-4
    """A poll of the pool, `ray.wait` included."""
    poll_per_worker_s: NonNegativeFloat = 1.55e-6
    """In each poll, for each worker."""
    hand_out_s: NonNegativeFloat = 3e-4
    """A call to a worker: its request pickled and sent."""
    search_per_worker_s: NonNegativeFloat = 5e-7
    """Before calls are handed out, for each worker: the search for the least busy ones."""
    receive_s: NonNegativeFloat = 2e-4
    """A result fetched."""
    status_per_worker_s: NonNegativeFloat = 2e-4
    """A worker asked for its status, and its answer fetched."""
    absorb_s_per_byte: NonNegativeFloat = 3.4e-10
    """An update checked and added."""
    merge_s_per_byte: NonNegativeFloat = 2.1e-10
    """A partial sum checked and added."""
    step_s_per_byte: NonNegativeFloat = 6.4e-9
    """The outer step and its metrics."""
    plan_per_task_s: NonNegativeFloat = 3.3e-4
    """A task drawn, and its request made."""
    put_s_per_byte: NonNegativeFloat = 5e-10
    """A prior hashed and put into the object store, once per version that the pool keeps."""
    save_s: NonNegativeFloat = 5e-3
    """A prior's files written, beside their bytes."""
    save_s_per_byte: NonNegativeFloat = 5e-9
    """The same for each byte: serialised, hashed, on disk."""
    commit_s: NonNegativeFloat = 2e-3
    """A commit of the job store on disk, the change worked out."""
    read_s: NonNegativeFloat = 2e-5
    """A read of the job store."""
    read_per_record_s: NonNegativeFloat = 1e-4
    """The same for each record."""


def load_costs(file: Path) -> Costs:
    """Costs from a JSON file, as `tests/benchmarks/fit_costs.py` writes it.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: names every wrong field.
    """
    try:
        return Costs.model_validate(json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {file}; tests/benchmarks/fit_costs.py writes one") from None
    except ValidationError as error:
        raise InvalidInputError(f"costs in {file}: {explain(error)}") from None
    except ValueError as error:
        raise InvalidInputError(f"{file} is not JSON: {error}") from None


@dataclass(frozen=True)
class Sizes:
    """Bytes that a study moves.

    Attributes:
        prior_bytes: a version of the prior.
        update_bytes: of a task: weights, one head, the architecture, as float32.
        sum_bytes: a partial sum: the same in integers of eight bytes.
    """

    prior_bytes: int
    update_bytes: int
    sum_bytes: int


def sizes_of(config: StudyConfig) -> Sizes:
    """Those of a study with this configuration."""
    prior = initial_prior(config)
    num_elements = sum(prior.vectors[name].size for name in prior.learnt_names)
    if config.few_shot is None:  # a task has one image size
        heads = [vector.size for name, vector in prior.vectors.items() if name.startswith(HEAD_PREFIX)]
        num_elements -= sum(heads) - max(heads)
    return Sizes(prior.num_bytes, 4 * num_elements, 8 * num_elements)
