"""Full networks as programs that run without this package: `torch.export` and ONNX. Neither file holds a pickle.

A program takes `images` (batch, channels, config.image_size, config.image_size), any batch, and returns `logits`
(batch, classes). It computes what the network does in evaluation mode; the auxiliary classifier is left out.
"""

import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from common.errors import MetaSearchError, UnavailableError
from common.network_config import NETWORK
from common.nn.full import FullNetwork

ONNX_TOLERANCE = 1e-4
"""How far onnxruntime's logits may be from torch's, as a fraction of the largest one where that exceeds 1."""
_CHECKED_BATCHES = (1, 3)
# Where each operation was called names files of this machine; neither file tells.
_ONNX_TRACE = "pkg.torch.onnx.stack_trace"
_EXTRA = "install them with pip install 'meta-arch-search[export]'"


def to_torch_program(network: FullNetwork) -> bytes:
    """The content of a .pt2 file, which `torch.export.load` reads.

    Its extra file `network.json` holds genotype and configuration.
    """
    program = _trace(network)
    # Kept inputs would be pickled into the file; nothing reads them.
    program.example_inputs = None
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={NETWORK: _description(network)})
    return buffer.getvalue()


def to_onnx(network: FullNetwork) -> bytes:
    """The content of an ONNX file, after onnxruntime has computed the same logits as torch from random images.

    Its metadata entry `network.json` holds genotype and configuration.

    Raises:
        UnavailableError: onnx, onnxscript or onnxruntime is not installed.
        MetaSearchError: onnxruntime computes other logits, by more than `ONNX_TOLERANCE`.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        _require(name)
    with _quiet():
        program = torch.onnx.export(
            _trace(network),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.pop(_ONNX_TRACE, None)
    program.model.metadata_props[NETWORK] = _description(network)
    data: bytes = program.model_proto.SerializeToString()
    for batch in _CHECKED_BATCHES:
        difference = onnx_difference(network, data, batch)
        if not difference <= ONNX_TOLERANCE:
            raise MetaSearchError(
                f"onnxruntime's logits differ from torch's by {difference:.2g} for {batch} images, more than "
                f"{ONNX_TOLERANCE:g}; the ONNX file is not written, use --format torch or python"
            )
    return data


def onnx_difference(network: FullNetwork, data: bytes, batch: int, seed: int = 0) -> float:
    """The largest difference of logits between onnxruntime and torch, on random images.

    Args:
        network: what torch computes, in evaluation mode.
        data: content of the ONNX file.
        batch: number of images.
        seed: draws them.

    Returns:
        A fraction of the largest logit where that exceeds 1; NaN where any logit is not finite.

    Raises:
        UnavailableError: onnxruntime is not installed.
    """
    session = _require("onnxruntime").InferenceSession(data, providers=["CPUExecutionProvider"])
    config = network.config
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    images = np.random.default_rng(seed).standard_normal(shape, np.float32)
    (found,) = session.run(["logits"], {"images": images})
    with torch.no_grad():
        expected = inference_copy(network)(torch.from_numpy(images)).numpy()
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def inference_copy(network: FullNetwork) -> FullNetwork:
    """A copy on the CPU, in evaluation mode, without the auxiliary classifier."""
    bare = copy.deepcopy(network).cpu().eval()
    bare.auxiliary = None
    return bare


def _trace(network: FullNetwork) -> ExportedProgram:
    config = network.config
    # Two images, since a batch of one would be taken for a constant.
    images = torch.zeros(2, config.image_channels, config.image_size, config.image_size)
    module: nn.Module = inference_copy(network)
    with torch.no_grad():
        program = torch.export.export(module, (images,), dynamic_shapes=({0: Dim("batch", min=1)},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _description(network: FullNetwork) -> str:
    content = {
        "config": network.config.model_dump(mode="json"),
        "genotype": network.genotype.model_dump(mode="json"),
    }
    return json.dumps(content)


def _require(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(
            f"exporting to ONNX needs onnx, onnxscript and onnxruntime ({error}); {_EXTRA}"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on their own internals, which a user can do nothing about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
