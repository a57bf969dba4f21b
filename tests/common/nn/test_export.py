"""Exported networks compute what they do here: torch programs, ONNX, and Python modules; and hold no pickle."""

import ast
import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.full_networks import trained
from safetensors.torch import load_file

from common.errors import MetaSearchError, UnavailableError
from common.network_config import NETWORK
from common.nn import export
from common.nn.export import inference_copy, onnx_difference, to_onnx, to_torch_program
from common.nn.full import FullNetwork
from common.nn.source import LINE_LENGTH, python_source
from common.nn.stored import weights_to_bytes
from common.space.genotype import Genotype, GenotypeEdge
from common.space.primitives import NONE, PRIMITIVES
from common.space.released import CIFAR_TUNED, IMAGENET_TUNED

pytestmark = pytest.mark.usefixtures("one_thread")


def every_op() -> Genotype:
    """All ops from both inputs in one node, more than fit into a line, and a node for each op."""
    ops = [name for name in PRIMITIVES if name != NONE]
    crowded = tuple(GenotypeEdge(source=source, primitive=name) for name in ops for source in (0, 1))
    nodes = tuple((GenotypeEdge(source=index + 1, primitive=name),) for index, name in enumerate(ops))
    return Genotype(cells={"reduction": (crowded,), "normal": nodes})


NETWORKS = {
    "cifar": lambda: trained(CIFAR_TUNED),
    "imagenet": lambda: trained(IMAGENET_TUNED, "imagenet", image_size=45),
    "every op": lambda: trained(every_op(), image_size=9),
}


@pytest.fixture(scope="module", params=sorted(NETWORKS))
def network(request: pytest.FixtureRequest) -> FullNetwork:
    return NETWORKS[request.param]()


def images_for(network: FullNetwork, batch: int, seed: int = 1) -> torch.Tensor:
    size = network.config.image_size
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def logits_of(network: FullNetwork, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return inference_copy(network)(images)


def test_a_copy_for_inference_leaves_the_network_as_it_was(network: FullNetwork) -> None:
    bare = inference_copy(network)
    assert network.training and network.auxiliary is not None
    assert not bare.training and bare.auxiliary is None
    assert set(network.state_dict()) - set(bare.state_dict()) == {
        name for name in network.state_dict() if name.startswith("auxiliary.")
    }


def test_a_torch_program_computes_the_same_logits_for_any_batch(network: FullNetwork) -> None:
    extra = {NETWORK: ""}
    program = torch.export.load(io.BytesIO(to_torch_program(network)), extra_files=extra).module()
    for batch in (1, 2, 5):
        images = images_for(network, batch)
        with torch.no_grad():
            assert torch.allclose(program(images), logits_of(network, images), rtol=0, atol=1e-6)
    described = json.loads(extra[NETWORK])
    assert described["config"] == network.config.model_dump(mode="json")
    assert Genotype.from_json(json.dumps(described["genotype"])) == network.genotype


def test_a_torch_program_holds_no_pickle_and_no_path_of_this_machine(
    network: FullNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = to_torch_program(network)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for name, content in contents.items():
        assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")), name
        assert not content.startswith(b"PK"), f"{name} is an archive as torch.save makes them"
    (model,) = (content for name, content in contents.items() if name.endswith("/models/model.json"))
    assert str(Path(export.__file__).parent).encode() not in model

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a pickle is read")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    torch.export.load(io.BytesIO(data))


@pytest.mark.untraced
def test_onnxruntime_computes_the_same_logits_for_any_batch(network: FullNetwork) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    data = to_onnx(network)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert str(Path(export.__file__).parent).encode() not in data, "no path of this machine"
    described = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(described[NETWORK])["config"]["num_classes"] == 5
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = images_for(network, batch)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        expected = logits_of(network, images).numpy()
        assert np.abs(expected).max() > 0.05, "there is something to compare"
        assert np.abs(found - expected).max() < 1e-4


@pytest.mark.untraced
def test_an_onnx_file_that_computes_otherwise_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    network = trained(CIFAR_TUNED, num_cells=1)
    data = to_onnx(network)
    with torch.no_grad():
        network.classifier.bias += 0.01
    assert 1e-4 < onnx_difference(network, data, 2) <= 0.0101
    monkeypatch.setattr(export, "onnx_difference", lambda *_: float("nan"))
    with pytest.raises(MetaSearchError, match="differ from torch's by nan for 1 images, more than 0.0001"):
        to_onnx(network)


def test_without_its_packages_onnx_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UnavailableError, match=r"needs onnx, onnxscript.*pip install 'meta-arch-search\[export\]'"):
        to_onnx(trained(CIFAR_TUNED))


# Runs in an empty folder, where beside the standard library only torch and what torch itself imports can be had.
ALONE = """
import sys, importlib.abc, json

ALLOWED = set(sys.stdlib_module_names) | {"torch", "torchgen", "functorch", "net", "typing_extensions", "filelock",
    "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec"}

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"{name} is out of reach", name=name)

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, ".")
import warnings
warnings.simplefilter("ignore")  # torch misses numpy
import torch
import net

torch.set_num_threads(1)
network = net.load()
assert not network.training
loaded = [name for name in ("common", "numpy", "safetensors", "pickle5") if name in sys.modules]
images = net.read_weights("images.safetensors")["images"]
with torch.no_grad():
    print(json.dumps({"logits": network(images).tolist(), "loaded": loaded}))
"""


def test_a_python_module_needs_torch_alone_and_computes_the_same_logits(network: FullNetwork, tmp_path: Path) -> None:
    images = images_for(network, 3)
    (tmp_path / "net.py").write_text(python_source(network.genotype, network.config, "net"))
    (tmp_path / "net.safetensors").write_bytes(weights_to_bytes(inference_copy(network).state_dict()))
    (tmp_path / "images.safetensors").write_bytes(weights_to_bytes({"images": images}))
    command = [sys.executable, "-I", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    assert torch.allclose(torch.tensor(found["logits"]), logits_of(network, images), rtol=0, atol=1e-6)


def test_a_python_module_defines_this_network_and_is_readable(network: FullNetwork) -> None:
    text = python_source(network.genotype, network.config, "net")
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"json", "pathlib", "torch", "torch.nn.functional"}
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert classes <= used | {"Network"}, "no class is there for nothing"
    assert all(ast.get_docstring(node) for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    assert max(map(len, text.splitlines())) <= LINE_LENGTH
    docstring = ast.get_docstring(tree) or ""
    assert all(
        f"{edge.primitive}({edge.source})" in docstring
        for nodes in network.genotype.cells.values()
        for node in nodes
        for edge in node
    )


def test_the_reader_of_a_python_module_reads_what_safetensors_does(tmp_path: Path) -> None:
    network = trained(CIFAR_TUNED)
    namespace: dict[str, object] = {"__name__": "net", "__file__": str(tmp_path / "net.py")}
    exec(compile(python_source(network.genotype, network.config, "net"), "net.py", "exec"), namespace)
    path = tmp_path / "weights.safetensors"
    tensors = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(1, 2, 3).double(),
        "count": torch.tensor(7),
    }
    path.write_bytes(weights_to_bytes(tensors))
    found = namespace["read_weights"](path)  # type: ignore[operator]
    assert found.keys() == load_file(path).keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
