"""The commands inspect and export: what they print, what they write, and mistakes as one line."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference.full_networks import trained
from reference.processes import Run, command_line

from common.network_config import WEIGHTS
from common.nn.export import inference_copy
from common.nn.stored import load_network, save_network
from common.space.released import CIFAR_TUNED, DARTS_V2, RELEASED

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--channels", "4", "--cells", "3", "--classes", "5", "--image-size", "16")


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


@pytest.mark.parametrize("command", ["inspect", "export"])
def test_help_explains_and_gives_an_example_of_use(metasearch: Run, command: str) -> None:
    code, out, _ = metasearch(command, "--help")
    assert code == 0
    assert f"Usage: metasearch {command}" in out and "Example:" in out and "DARTS_V2" in out


def test_inspect_prints_counts_and_shapes_as_json(metasearch: Run) -> None:
    options = ("--motif", "cifar", "--channels", "40", "--cells", "20", "--classes", "10", "--image-size", "32")
    code, out, err = metasearch("inspect", "CIFAR_TUNED", *options, "--json")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert (found["params"], found["params_with_auxiliary"], found["macs"]) == (3_145_490, 3_630_108, 500_128_000)
    assert [cell["shape"] for cell in found["cells"]] == [[160, 32, 32]] * 6 + [[320, 16, 16]] * 7 + [[640, 8, 8]] * 7
    parts = [found["stem"], *found["cells"], found["classifier"]]
    assert sum(part["params"] for part in parts) == found["params"]
    assert sum(part["macs"] for part in parts) == found["macs"]
    assert found["genotype"] == CIFAR_TUNED.model_dump(mode="json")


def test_a_motif_has_the_published_sizes_by_default(metasearch: Run) -> None:
    code, out, _ = metasearch("inspect", "IMAGENET_TUNED", "--motif", "imagenet", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["params"], found["params_with_auxiliary"], found["macs"]) == (4_872_640, 6_133_416, 549_978_816)


def test_inspect_prints_a_table(metasearch: Run) -> None:
    code, out, _ = metasearch("inspect", "CIFAR_TUNED")
    assert code == 0
    assert "3,145,490" in out and "3,630,108" in out and "500,128,000" in out
    row = next(line for line in out.splitlines() if "cell 13, reduction" in line)
    assert "640 x 8 x 8" in row


def test_inspect_draws_the_cells(metasearch: Run, tmp_path: Path) -> None:
    code, _, err = metasearch("inspect", "DARTS_V2", "--out", str(tmp_path / "cells.png"))
    assert code == 0 and "cells.png" in err
    assert (tmp_path / "cells.png").read_bytes().startswith(b"\x89PNG")


def test_inspect_needs_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['metasearch', 'inspect', 'DARTS_V1', '--json']\n"
        "from coordinator import network_cli; import typer; app = typer.Typer(); network_cli.register(app)\n"
        "try: app()\n"
        "finally: assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    # As the only commands: `coordinator.cli` brings others along, which import more.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["params"] > 3_000_000


def test_a_genotype_is_read_from_its_json_and_from_a_result_that_holds_one(metasearch: Run, tmp_path: Path) -> None:
    (tmp_path / "genotype.json").write_text(DARTS_V2.to_json())
    (tmp_path / "result.json").write_text(json.dumps({"accuracy": 1, "genotype": DARTS_V2.model_dump(mode="json")}))
    _, expected, _ = metasearch("inspect", "DARTS_V2", "--json")
    for name in ("genotype.json", "result.json"):
        assert metasearch("inspect", str(tmp_path / name), "--json") == (0, expected, "")


def test_a_folder_says_itself_what_its_network_is(metasearch: Run, tmp_path: Path) -> None:
    save_network(tmp_path / "net", trained(CIFAR_TUNED))
    code, out, _ = metasearch("inspect", str(tmp_path / "net"), "--json")
    assert code == 0
    _, expected, _ = metasearch("inspect", "CIFAR_TUNED", *SMALL, "--json")
    assert json.loads(out) == json.loads(expected)


def test_the_folder_of_an_adaptation_stands_for_the_network_in_it(metasearch: Run, tmp_path: Path) -> None:
    save_network(tmp_path / "adapt" / "network", trained(CIFAR_TUNED))
    (tmp_path / "adapt" / "weights.safetensors").write_bytes(b"of the supernet")
    outs = []
    for name, folder in (("outer", "adapt"), ("inner", "adapt/network")):
        out = tmp_path / name / "net.py"
        code, _, err = metasearch("export", str(tmp_path / folder), "--format", "python", "--out", str(out))
        assert code == 0, err
        outs.append((out.read_bytes(), out.with_suffix(".safetensors").read_bytes()))
    assert outs[0] == outs[1]


def test_a_trained_network_is_exported_to_every_format(metasearch: Run, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    save_network(tmp_path / "net", trained(CIFAR_TUNED))
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = load_network(tmp_path / "net")(images)
    for form, name in (("torch", "net.pt2"), ("onnx", "net.onnx"), ("python", "net.py")):
        out = tmp_path / "out" / name
        code, found, err = metasearch("export", str(tmp_path / "net"), "--format", form, "--out", str(out), "--json")
        assert code == 0, err
        assert "afresh" not in err
        files = json.loads(found)["files"]
        assert all(Path(file).exists() for file in files) and str(out) in files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "net.onnx",
        "net.pt2",
        "net.py",
        "net.safetensors",
    ]
    session = runtime.InferenceSession(str(tmp_path / "out" / "net.onnx"), providers=["CPUExecutionProvider"])
    spec = importlib.util.spec_from_file_location("exported_net", tmp_path / "out" / "net.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        found = {
            "torch": torch.export.load(str(tmp_path / "out" / "net.pt2")).module()(images),
            "onnx": torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]),
            "python": module.load()(images),
        }
    for form, logits in found.items():
        assert torch.allclose(logits, expected, rtol=0, atol=1e-4), form


def test_weights_are_drawn_by_a_seed_or_read_from_a_file(metasearch: Run, tmp_path: Path) -> None:
    def weights(*options: str) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        code, _, err = metasearch("export", "CIFAR_TUNED", *SMALL, "--format", "python", "--out", str(out), *options)
        assert code == 0
        assert ("drawn afresh" in err) == ("--weights" not in options)
        return load_file(tmp_path / "net.safetensors")

    out = tmp_path / "net.py"
    network = trained(CIFAR_TUNED)
    save_network(tmp_path / "stored", network)
    first, again, other = weights(), weights("--seed", "0"), weights("--seed", "1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    read = weights("--weights", str(tmp_path / "stored" / WEIGHTS))
    expected = inference_copy(network).state_dict()
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in read)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "NO_SUCH"], 3, ["NO_SUCH", *RELEASED]),
        (["inspect", "DIR/bad.json"], 2, ["bad.json is not JSON", "line 2 column 1"]),
        (["inspect", "DIR/list.json"], 2, ["list.json: genotype: ", "object"]),
        (["inspect", "DIR/ahead.json"], 2, ["ahead.json: ", "cells.normal[0] has source 5"]),
        (["inspect", "DIR/flat.json"], 2, ["normal and reduction", "flat"]),
        (["inspect", "DIR"], 3, ["DIR holds no network", "network.json"]),
        (["inspect", "DIR/net", "--cells", "8"], 2, ["DIR/net", "leave out --cells"]),
        (["inspect", "DIR/broken"], 7, ["network.json does not describe a network"]),
        (["inspect", "CIFAR_TUNED", "--motif", "svhn"], 2, ["motif", "cifar, imagenet", "svhn"]),
        (["inspect", "CIFAR_TUNED", "--channels", "7"], 2, ["channels", "multiple of 2", "7"]),
        (["inspect", "CIFAR_TUNED", "--out", "DIR/new.txt"], 2, ["new.txt", ".png"]),
        (["export", "CIFAR_TUNED", "--format", "pickle", "--out", "DIR/new"], 2, ["--format", "torch, onnx, python"]),
        (["export", "CIFAR_TUNED", "--format", "onnx", "--out", "DIR/new"], 2, ["--format onnx", ".onnx"]),
        (["export", "CIFAR_TUNED", "--format", "python", "--out", "DIR/a-b.py"], 2, ["a-b.py cannot be imported"]),
        (["export", "CIFAR_TUNED", "--format", "python", "--out", "DIR/new.py", "--weights", "DIR/w"], 3, ["DIR/w"]),
        (
            ["export", "CIFAR_TUNED", "--format", "python", "--out", "DIR/new.py", "--weights", "DIR/bad.json"],
            2,
            ["bad.json is not a safetensors file"],
        ),
        (
            [
                "export",
                "DARTS_V1",
                *SMALL,
                "--format",
                "python",
                "--out",
                "DIR/new.py",
                "--weights",
                f"DIR/net/{WEIGHTS}",
            ],
            2,
            ["is of another network"],
        ),
        (
            ["export", "DARTS_V1", "--format", "python", "--out", "DIR/new.py", "--weights", "DIR/w", "--seed", "1"],
            2,
            ["--seed", "--weights"],
        ),
        (
            ["export", "DIR/net", "--format", "python", "--out", "DIR/new.py", "--seed", "1"],
            2,
            ["leave out --seed"],
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    metasearch: Run, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    save_network(tmp_path / "net", trained(CIFAR_TUNED))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "network.json").write_text("{}")
    (tmp_path / "bad.json").write_text('{"cells":\n}')
    (tmp_path / "list.json").write_text("[]")
    edge = {"source": 5, "primitive": "skip_connect"}
    (tmp_path / "ahead.json").write_text(json.dumps({"cells": {"normal": [[edge]]}}))
    (tmp_path / "flat.json").write_text(json.dumps({"cells": {"flat": [[{**edge, "source": 0}]]}}))
    before = sorted(tmp_path.rglob("*"))
    found, out, err = metasearch(*(argument.replace("DIR", str(tmp_path)) for argument in arguments))
    assert found == code, err
    assert out == ""
    (error,) = [line for line in err.splitlines() if line]
    assert error.startswith("Error: ")
    for word in words:
        assert word.replace("DIR", str(tmp_path)) in error
    assert sorted(tmp_path.rglob("*")) == before, "a mistake leaves nothing behind"
