"""The folder of a job's results: its files, and last the manifest, without which a result is not complete."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from common.messages import ArtifactInfo
from common.network_config import network_folder
from common.nn.full import FullNetwork
from common.nn.stored import save_network
from common.space.genotype import Genotype
from common.storage import ArtifactFolder
from workers.inherit import NETWORK_FILES

WEIGHTS = "weights.safetensors"
RESULT = "result.json"
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1


def store_results(
    folder: ArtifactFolder, files: Mapping[str, bytes], network: FullNetwork | None
) -> tuple[ArtifactInfo, ...]:
    """Stores all of a result: its files, a network that is ready to use in a folder of its own, and the manifest."""
    begin_results(folder)
    artifacts = write_files(folder, files)
    if network is not None:
        save_network(network_folder(folder), network)
        artifacts += tuple(info_of(name, folder.read(name)) for name in NETWORK_FILES)
    write_manifest(folder, artifacts)
    return artifacts


def begin_results(folder: ArtifactFolder) -> None:
    """Removes the manifest of an earlier attempt: it speaks for files that are about to change."""
    folder.remove(MANIFEST)


def write_files(folder: ArtifactFolder, files: Mapping[str, bytes]) -> tuple[ArtifactInfo, ...]:
    """Writes files, and tells their sizes and hashes."""
    for name, data in files.items():
        folder.write(name, data)
    return tuple(info_of(name, data) for name, data in files.items())


def info_of(name: str, data: bytes) -> ArtifactInfo:
    """What a manifest says of a file."""
    return ArtifactInfo(name, len(data), hashlib.sha256(data).hexdigest())


def write_manifest(folder: ArtifactFolder, artifacts: tuple[ArtifactInfo, ...]) -> None:
    """Completes a result."""
    manifest = {"format": MANIFEST_FORMAT, "artifacts": [asdict(artifact) for artifact in artifacts]}
    folder.write(MANIFEST, json.dumps(manifest, indent=2).encode())


def weights_bytes(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The content of `WEIGHTS`."""
    return save_tensors({name: np.ascontiguousarray(vector) for name, vector in weights.items()})


def json_bytes(content: Any) -> bytes:
    """Plain values as people can read them, too."""
    return json.dumps(content, indent=2, allow_nan=False).encode()


def plain(genotype: Genotype) -> Any:
    """A genotype as plain values."""
    return json.loads(genotype.to_json())
