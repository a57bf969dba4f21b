"""The images of a few-shot job, decoded and square: one npz file with the arrays `support` and `queries`."""

import hashlib
import io
import zipfile
from dataclasses import dataclass

import numpy as np

from common.errors import CorruptArtifactError
from workers.data.arrays import Images


@dataclass(frozen=True, eq=False)
class Handful:
    """Labelled images, at least one, and images to be labelled: uint8 (image, size, size, channel), channels 1 or 3."""

    support: Images
    queries: Images

    def to_bytes(self) -> bytes:
        """The file. Equal images make equal files."""
        buffer = io.BytesIO()
        np.savez(buffer, support=self.support, queries=self.queries)
        return buffer.getvalue()


def handful_from_bytes(data: bytes, sha256: str, name: str) -> Handful:
    """The images of a file.

    Args:
        data: its content.
        sha256: that it should have.
        name: what error messages call it.

    Raises:
        CorruptArtifactError: the content is another.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptArtifactError(f"{name} does not have its SHA-256 {sha256}; submit the images again")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return Handful(file["support"], file["queries"])
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CorruptArtifactError(f"{name} holds no images ({error}); submit them again") from None
