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
    """The genotype that a released name, a JSON file or a network's folder stands for.

    Raises:
        NotFoundError: there is no such name, file or network.
        InvalidInputError: the file holds no genotype.
    """
    if name in RELEASED:
        return RELEASED[name]
    path = Path(name)
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
