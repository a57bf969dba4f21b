"""Full networks in folders: what `common.network_config` lays out, written and read."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.network_config import NETWORK, NETWORK_FORMAT, WEIGHTS, StoredNetwork, read_stored_network
from common.nn.full import FullNetwork, build_full_network
from common.storage import ArtifactFolder

AUXILIARY_PREFIX = "auxiliary."


def save_network(folder: ArtifactFolder | str | Path, network: FullNetwork) -> StoredNetwork:
    """Stores a network: weights first, then the description that makes it exist.

    Over another network of the same folder there is a moment in which the two files disagree; `load_network` notices.

    Raises:
        UnavailableError: the storage refuses.
    """
    where = folder if isinstance(folder, ArtifactFolder) else ArtifactFolder(folder)
    data = weights_to_bytes(network.state_dict())
    stored = StoredNetwork(
        format=NETWORK_FORMAT,
        config=network.config,
        genotype=network.genotype,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    where.write(WEIGHTS, data)
    where.write(NETWORK, stored.model_dump_json(indent=2).encode())
    return stored


def load_network(folder: ArtifactFolder | str | Path) -> FullNetwork:
    """The network that `save_network` stored, on the CPU, in evaluation mode.

    Raises:
        NotFoundError: the folder holds no network.
        CorruptArtifactError: description or weights are damaged, or do not belong together.
        UnavailableError: the storage refuses.
    """
    where = folder if isinstance(folder, ArtifactFolder) else ArtifactFolder(folder)
    stored = read_stored_network(where)
    path = where.path(WEIGHTS)
    try:
        data = where.read(WEIGHTS)
    except NotFoundError:
        raise CorruptArtifactError(f"{path} is missing") from None
    if len(data) != stored.num_bytes:
        raise CorruptArtifactError(f"{path} has {len(data)} bytes, {NETWORK} says {stored.num_bytes}")
    if hashlib.sha256(data).hexdigest() != stored.sha256:
        raise CorruptArtifactError(f"{path} does not have the SHA-256 of {NETWORK}")
    try:
        network = build_full_network(stored.genotype, stored.config, seed=0)
        load_weights_(network, data, path)
    except InvalidInputError as error:
        raise CorruptArtifactError(str(error)) from None
    return network.eval()


def weights_to_bytes(weights: dict[str, Tensor]) -> bytes:
    """The content of a safetensors file with a network's state."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    data: bytes = save_tensors(tensors)
    return data


def load_weights_(network: FullNetwork, data: bytes, path: str) -> None:
    """Puts the content of a safetensors file into a network.

    Args:
        network: takes every tensor; where it has no auxiliary classifier, that one's are passed over.
        data: what `weights_to_bytes` gives.
        path: where the data come from, for messages.

    Raises:
        InvalidInputError: the data are no safetensors file, or their tensors are not the network's; names the first
            that is wrong. The network keeps what it had.
    """
    try:
        found = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidInputError(f"{path} is not a safetensors file: {error}") from None
    expected = network.state_dict()
    if network.auxiliary is None:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(AUXILIARY_PREFIX)}
    for name, tensor in expected.items():
        if name not in found:
            raise InvalidInputError(f"{path} lacks the tensor {name}; it is of another network")
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            raise InvalidInputError(
                f"{path} has {name} as {_describe(found[name])}, the network as {_describe(tensor)}; "
                "it is of another network"
            )
    for name in found:
        if name not in expected:
            raise InvalidInputError(f"{path} has a tensor {name}, which the network lacks; it is of another network")
    network.load_state_dict(found)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
