"""The commands that look at full networks and take them away."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.cost import Cost
from common.errors import InvalidInputError, NotFoundError, UnavailableError
from common.network_config import (
    NETWORK,
    NETWORK_FOLDER,
    WEIGHTS,
    FullNetworkConfig,
    find_network,
    network_config,
    read_stored_network,
)
from common.space.genotype import Genotype
from common.space.released import RELEASED
from common.storage import ArtifactFolder
from coordinator.api.stubs import search_pb2 as pb
from coordinator.genotypes import genotype_of
from coordinator.service_access import ServerOption, TokenOption, fetched, job_named

if TYPE_CHECKING:
    from common.nn.full import FullNetwork

# Torch and matplotlib wait until a command needs them.

_messages = Console(stderr=True, highlight=False)

SUFFIXES: Mapping[str, str] = MappingProxyType({"torch": ".pt2", "onnx": ".onnx", "python": ".py"})

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help=f"{', '.join(RELEASED)}; a JSON file with a genotype; a folder with a network, "
        "or of an adaptation that left one.",
    ),
]
ExportedArgument = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK|JOB",
        help=f"{', '.join(RELEASED)}; a JSON file with a genotype; a folder with a network, or of an adaptation that "
        "left one; or a job that did, studies/STUDY/jobs/ID.",
    ),
]
MotifOption = Annotated[str | None, typer.Option(help="cifar (also for SVHN; the default) or imagenet.")]
ChannelsOption = Annotated[int | None, typer.Option(help="Per node of the first cell; the motif's by default: 40, 48.")]
CellsOption = Annotated[int | None, typer.Option(help="The motif's by default: 20, 14.")]
ClassesOption = Annotated[int | None, typer.Option(help="The motif's by default: 10, 1000.")]
ImageSizeOption = Annotated[int | None, typer.Option(help="Pixels; the motif's by default: 32, 224.")]
ImageChannelsOption = Annotated[int | None, typer.Option(help="1 or 3; 3 by default.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]


@dataclass(frozen=True)
class _Named:
    """What a user's argument stands for; `folder` is None where there are no weights."""

    genotype: Genotype
    config: FullNetworkConfig
    folder: ArtifactFolder | None


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for name, command in (("inspect", inspect_network), ("export", export_network)):
        app.command(name, rich_help_panel="Full networks")(command)


def inspect_network(
    network: NetworkArgument,
    motif: MotifOption = None,
    channels: ChannelsOption = None,
    cells: CellsOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    image_channels: ImageChannelsOption = None,
    out: Annotated[Path | None, typer.Option(help="Draw the cells into this .png, .svg or .pdf.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Counts a full network's parameters and multiply-accumulates, cell by cell; draws its cells.

    Multiply-accumulates are those of convolutions and linear layers for one image, without the auxiliary classifier;
    BatchNorm, ReLU, pooling and sums count none.

    Example: `metasearch inspect CIFAR_TUNED --channels 36 --out cells.png`.
    """
    from common.nn.counting import count_network

    named = _resolve(network, _options(motif, channels, cells, classes, image_size, image_channels))
    count = count_network(named.genotype, named.config)
    if out is not None:
        from coordinator.report import draw_cells

        draw_cells(named.genotype, out, network if network in RELEASED else "")
        _messages.print(f"The cells are drawn in {out}.", soft_wrap=True)
    if as_json:
        content = {
            "params": count.total.num_params,
            "params_with_auxiliary": count.num_params_with_auxiliary,
            "macs": count.total.num_macs,
            "stem": _plain(count.stem),
            "cells": [
                {"kind": cell.kind, "shape": [cell.channels, cell.size, cell.size], **_plain(cell.cost)}
                for cell in count.cells
            ],
            "classifier": _plain(count.classifier),
            "network": named.config.model_dump(mode="json"),
            "genotype": named.genotype.model_dump(mode="json"),
        }
        print(json.dumps(content))
        return
    table = Table("part", "output", "parameters", "MACs", show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("stem", "", *_columns(count.stem))
    for index, cell in enumerate(count.cells):
        shape = f"{cell.channels} x {cell.size} x {cell.size}"
        table.add_row(f"cell {index}, {cell.kind}", shape, *_columns(cell.cost))
    table.add_row("classifier", str(named.config.num_classes), *_columns(count.classifier), end_section=True)
    table.add_row("all", "", *_columns(count.total))
    table.add_row("with the auxiliary classifier", "", f"{count.num_params_with_auxiliary:,}", "")
    Console().print(table)


def export_network(
    network: ExportedArgument,
    out: Annotated[Path, typer.Option(help="File to write: .pt2, .onnx or .py, as the format has it.")],
    form: Annotated[str, typer.Option("--format", help="torch (torch.export), onnx, or python (source text).")],
    motif: MotifOption = None,
    channels: ChannelsOption = None,
    cells: CellsOption = None,
    classes: ClassesOption = None,
    image_size: ImageSizeOption = None,
    image_channels: ImageChannelsOption = None,
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file of the network's weights; drawn afresh without it.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Draws fresh weights; 0 by default.")] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Writes a full network as a program that runs without this package: PyTorch, ONNX, or Python source.

    `torch` gives a program for `torch.export.load`; `onnx` a file from which onnxruntime has been seen to compute the
    same logits; `python` a readable module that needs torch alone, and its weights beside it, as safetensors. No file
    holds a pickle.

    Example: `metasearch export results/network --format onnx --out network.onnx`, or of a job
    `metasearch export studies/mine/jobs/ID --format python --out network.py`.
    """
    if form not in SUFFIXES:
        raise InvalidInputError(f"--format must be one of {', '.join(SUFFIXES)}, got {form!r}")
    if out.suffix != SUFFIXES[form]:
        raise InvalidInputError(f"--format {form} writes a {SUFFIXES[form]} file, got --out {out}")
    if form == "python" and (not out.stem.isidentifier() or iskeyword(out.stem)):
        raise InvalidInputError(f"{out.name} cannot be imported; name it with letters, digits and underscores")
    options = _options(motif, channels, cells, classes, image_size, image_channels)
    job = None if Path(network).is_dir() else job_named(network)
    with ExitStack() as folders:
        if job is not None:
            _check_bare(job, {**options, "weights": weights, "seed": seed})
            network = str(folders.enter_context(fetched(job, server, token, _network_files))[1])
        named = _resolve(network, options, {"weights": weights, "seed": seed})
        if weights is not None and seed is not None:
            raise InvalidInputError("--seed draws weights afresh, --weights reads them; give one of both")
        built = _build(named, weights, seed or 0)

    from common.nn.counting import count_network

    with _messages.status("Exporting ..."):
        files = _export(built, form, out.stem)
    folder = ArtifactFolder(out.parent)
    for suffix, data in files.items():
        folder.write(out.stem + suffix, data)
    names = [str(out.with_suffix(suffix)) for suffix in files]
    if as_json:
        print(json.dumps({"files": names, **_plain(count_network(named.genotype, named.config).total)}))
    if named.folder is None and weights is None:
        _messages.print(f"The weights are drawn afresh with seed {seed or 0}: nothing was trained.")
    _messages.print(f"Written: {escape(', '.join(names))}.", soft_wrap=True)


def _network_files(job: pb.Job) -> list[str]:
    """Names of the artifacts that make a job's network.

    Raises:
        InvalidInputError: the job left none.
    """
    names = {artifact.name for artifact in job.artifacts}
    for folder in ("", f"{NETWORK_FOLDER}/"):
        if folder + NETWORK in names:
            return [folder + NETWORK, folder + WEIGHTS]
    if job.HasField("few_shot_result"):
        raise InvalidInputError(
            f"{job.name} adapted a network that export does not write; those of studies with few_shot.network = "
            "'genotype' it does. The adapted weights come with metasearch result JOB --out FOLDER"
        )
    raise InvalidInputError(
        f"{job.name} left no network; give a job of metasearch submit --evaluate or --fine-tune-steps"
    )


def _export(network: "FullNetwork", form: str, stem: str) -> dict[str, bytes]:
    """Contents of the files by suffix, in the order in which they are to be written."""
    if form == "python":
        from common.nn.export import inference_copy
        from common.nn.source import python_source
        from common.nn.stored import weights_to_bytes

        data = weights_to_bytes(inference_copy(network).state_dict())
        return {".safetensors": data, ".py": python_source(network.genotype, network.config, stem).encode()}
    from common.nn.export import to_onnx, to_torch_program

    return {SUFFIXES[form]: to_onnx(network) if form == "onnx" else to_torch_program(network)}


def _build(named: _Named, weights: Path | None, seed: int) -> "FullNetwork":
    from common.nn.full import build_full_network
    from common.nn.stored import load_network, load_weights_

    if named.folder is not None:
        return load_network(named.folder)
    built = build_full_network(named.genotype, named.config.model_copy(update={"auxiliary": False}), seed)
    if weights is not None:
        load_weights_(built, _read(weights), str(weights))
    return built


def _resolve(network: str, options: Mapping[str, Any], more: Mapping[str, Any] = MappingProxyType({})) -> _Named:
    """The network that an argument names.

    Args:
        network: name of a released genotype, a JSON file, or a network's folder.
        options: fields of `FullNetworkConfig`, and the motif, as far as given.
        more: further options that do not go with a folder, which has all of it.

    Raises:
        NotFoundError: there is no such name or file.
        InvalidInputError: the file holds no genotype, an option is out of range, or goes with no folder.
        CorruptArtifactError: the folder's description of its network is damaged.
    """
    if network not in RELEASED and (Path(network).is_dir() or "://" in network):
        folder = find_network(network)
        stored = read_stored_network(folder)
        _check_bare(network, {**options, **more})
        return _Named(stored.genotype, stored.config, folder)
    genotype = genotype_of(network)
    fields = {name: value for name, value in options.items() if name != "motif"}
    return _Named(genotype, network_config(options["motif"] or "cifar", **fields), None)


def _check_bare(network: str, options: Mapping[str, Any]) -> None:
    """Refuses options beside what says all of them."""
    for name in (name for name, value in options.items() if value is not None):
        flag = f"--{name.removeprefix('num_').replace('_', '-')}"
        raise InvalidInputError(f"{network} says what its network is and holds its weights; leave out {flag}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error}") from None


def _options(
    motif: str | None,
    channels: int | None,
    cells: int | None,
    classes: int | None,
    image_size: int | None,
    image_channels: int | None,
) -> dict[str, Any]:
    return {
        "motif": motif,
        "channels": channels,
        "num_cells": cells,
        "num_classes": classes,
        "image_size": image_size,
        "image_channels": image_channels,
    }


def _plain(cost: Cost) -> dict[str, int]:
    return {"params": cost.num_params, "macs": cost.num_macs}


def _columns(cost: Cost) -> tuple[str, str]:
    return f"{cost.num_params:,}", f"{cost.num_macs:,}"
