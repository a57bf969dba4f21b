"""A file of a folder that holds one value, as JSON."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from common.errors import CorruptArtifactError, NotFoundError
from common.storage import ArtifactFolder
from common.values import explain

_MAX_EXPLANATION = 500  # characters

_Value = TypeVar("_Value", bound=BaseModel)


@dataclass(frozen=True)
class ValueFile(Generic[_Value]):
    """Such a file, in any folder.

    Attributes:
        kind: class of the value.
        name: of the file.
        missing: what a folder without the file lacks, and what to do then: `holds no sweep; start one ...`.
        remedy: what to do with a damaged one; nothing is said where empty.
    """

    kind: type[_Value]
    name: str
    missing: str
    remedy: str = ""

    def store(self, folder: ArtifactFolder, value: _Value) -> None:
        """Stores a value.

        Raises:
            UnavailableError: the storage refuses.
        """
        folder.write(self.name, value.model_dump_json(indent=2).encode())

    def read(self, folder: ArtifactFolder) -> _Value:
        """The value that a folder holds.

        Raises:
            NotFoundError: it holds none.
            CorruptArtifactError: the file is damaged.
            UnavailableError: the storage refuses.
        """
        try:
            return self.kind.model_validate_json(folder.read(self.name))
        except NotFoundError:
            raise NotFoundError(f"{folder.url} {self.missing}") from None
        except ValidationError as error:
            ending = f"; {self.remedy}" if self.remedy else ""
            raise CorruptArtifactError(
                f"{folder.path(self.name)} is damaged: {explain(error)[:_MAX_EXPLANATION]}{ending}"
            ) from None
