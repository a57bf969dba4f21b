"""Networks in folders: the same network comes back, and nothing else."""

import json
import math
from pathlib import Path

import pytest
import torch
from reference.full_networks import trained

from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError
from common.network_config import NETWORK, WEIGHTS, read_stored_network
from common.nn.full import build_full_network
from common.nn.stored import load_network, load_weights_, save_network, weights_to_bytes
from common.space.released import CIFAR_TUNED, DARTS_V1, IMAGENET_TUNED
from common.storage import ArtifactFolder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_network_that_was_stored_comes_back_in_evaluation_mode(tmp_path: Path) -> None:
    network = trained(IMAGENET_TUNED, "imagenet")
    save_network(tmp_path / "net", network)
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [NETWORK, WEIGHTS]
    found = load_network(tmp_path / "net")
    assert not found.training
    assert found.genotype == network.genotype and found.config == network.config
    expected = network.state_dict()
    assert found.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    stored = read_stored_network(ArtifactFolder(tmp_path / "net"))
    assert (stored.genotype, stored.config) == (network.genotype, network.config)


def test_a_folder_may_be_any_storage_and_be_written_again() -> None:
    folder = ArtifactFolder("memory://networks/one")
    save_network(folder, trained(CIFAR_TUNED))
    save_network(folder, trained(DARTS_V1))
    assert load_network(folder).genotype == DARTS_V1


def test_a_folder_without_a_description_holds_no_network(tmp_path: Path) -> None:
    save_network(tmp_path, trained(CIFAR_TUNED))
    (tmp_path / NETWORK).unlink()  # as after a crash between the two files
    with pytest.raises(NotFoundError, match="holds no network: there is no network.json"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: (folder / WEIGHTS).unlink(), "weights.safetensors is missing"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"short"), "has 5 bytes, network.json says"),
        (lambda folder: flip_last_byte(folder / WEIGHTS), "does not have the SHA-256 of network.json"),
        (lambda folder: (folder / NETWORK).write_text("{}"), "does not describe a network: format: Field required"),
        (lambda folder: edit(folder, format=2), "has format 2, this program reads 1"),
        (lambda folder: edit_config(folder, channels=8), "it is of another network"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, change, complaint: str) -> None:
    save_network(tmp_path, trained(CIFAR_TUNED))
    change(tmp_path)
    with pytest.raises(CorruptArtifactError, match=complaint):
        load_network(tmp_path)


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    content = json.loads((folder / NETWORK).read_text())
    (folder / NETWORK).write_text(json.dumps({**content, **changes}))


def edit_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / NETWORK).read_text())
    edit(folder, config={**content["config"], **changes})


def test_weights_with_an_auxiliary_classifier_fit_a_network_without() -> None:
    network = trained(CIFAR_TUNED)
    bare = build_full_network(CIFAR_TUNED, network.config.model_copy(update={"auxiliary": False}), 1)
    load_weights_(bare, weights_to_bytes(network.state_dict()), "w")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(bare.eval()(images), network.eval()(images))


def test_weights_of_another_network_are_refused_by_the_first_that_is_wrong() -> None:
    network = trained(CIFAR_TUNED)
    before = weights_to_bytes(network.state_dict())
    state = network.state_dict()
    shape = math.prod(state["classifier.weight"].shape)
    wrong = {
        "lacks the tensor classifier.bias": {n: v for n, v in state.items() if n != "classifier.bias"},
        "has a tensor more, which the network lacks": {**state, "more": torch.zeros(1)},
        rf"has classifier.weight as float32\[{shape}\], the network as float32\[5, 64\]": {
            **state,
            "classifier.weight": torch.zeros(shape),
        },
        "has classifier.bias as float64": {**state, "classifier.bias": torch.zeros(5, dtype=torch.float64)},
    }
    for complaint, weights in wrong.items():
        with pytest.raises(InvalidInputError, match=f"^w {complaint}"):
            load_weights_(network, weights_to_bytes(weights), "w")
    for data in (b"", b"\x80\x02}q\x00.", before[:100]):
        with pytest.raises(InvalidInputError, match="w is not a safetensors file"):
            load_weights_(network, data, "w")
    assert weights_to_bytes(network.state_dict()) == before
