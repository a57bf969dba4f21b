"""The genotype that an argument of the command line names."""

import json
from pathlib import Path

from pydantic_core import from_json

from common.errors import InvalidInputError, NotFoundError, UnavailableError
from common.network_config import read_stored_network
from common.space.genotype import Genotype
from common.space.released import RELEASED
from common.storage import ArtifactFolder


def genotype_of(name: str) -> Genotype:
    """The genotype that a released name, a JSON file, a network's folder or a run's last prior stands for.

    Raises:
        NotFoundError: there is no such name, file, network or prior.
        InvalidInputError: the file holds no genotype, or the run learns none.
        CorruptArtifactError: the run's configuration or prior is damaged.
    """
    if name in RELEASED:
        return RELEASED[name]
    path = Path(name)
    if (path / "config.json").is_file():
        return _genotype_of_run(path)
    if path.is_dir() or "://" in name:
        return read_stored_network(ArtifactFolder(name)).genotype
    try:
        content = from_json(path.read_bytes())
    except FileNotFoundError:
        raise NotFoundError(f"there is no file and no genotype {name!r}; released are {', '.join(RELEASED)}") from None
    except OSError as error:
        raise UnavailableError(f"cannot read {name}: {error}") from None
    except ValueError as error:
        raise InvalidInputError(f"{name} is not JSON: {error}") from None
    # Results of adaptations and of evaluations hold their genotype among other things.
    if isinstance(content, dict) and "genotype" in content and "cells" not in content:
        content = content["genotype"]
    try:
        return Genotype.from_json(json.dumps(content))
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None


def genotype_fields(name: str) -> dict[str, object]:
    """Fields of a study's configuration that have it learn the weights of one genotype's network from few shots.

    Raises:
        NotFoundError: see `genotype_of`, also for the other errors.
    """
    return {"few_shot.network": "genotype", "few_shot.genotype": genotype_of(name).model_dump(mode="json")}


def _genotype_of_run(run: Path) -> Genotype:
    from common.artifacts import PriorStore
    from common.meta.prior import ALPHA
    from coordinator.outer import prior_genotype

    store = PriorStore(run)
    config = store.load_config()
    if config.few_shot is not None and config.few_shot.genotype is not None:
        return config.few_shot.genotype
    if config.few_shot is not None and config.few_shot.network == "four_convolutions":
        raise InvalidInputError(
            f"{run} learns the weights of four convolutions, which have no genotype; give another run"
        )
    return prior_genotype(store.load().vectors[ALPHA], config)
