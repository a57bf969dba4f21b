"""`metasearch bench`: what it times on this machine, and what it says where there is no card."""

import json

import pytest
import torch
from reference.processes import Run, command_line

from common.config import NetworkConfig
from common.nn.native.library import find
from workers.benchmark import variants

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("bench", "--preset", "smoke", "--steps", "3")


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


def test_bench_times_each_engine_on_the_cpu(metasearch: Run) -> None:
    code, out, err = metasearch(*SMALL, "--device", "cpu", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["device"] == "CPU, one thread"
    assert (result["source"], result["image_size"], result["batch_size"], result["num_classes"]) == (
        "digits",
        16,
        16,
        3,
    )
    names = [variant["name"] for variant in result["variants"]]
    assert names == (["native", "pytorch"] if find()[0] is not None else ["pytorch"])
    for variant in result["variants"]:
        assert 0 < variant["low_ms"] <= variant["median_ms"] <= variant["high_ms"]
        assert variant["images_per_s"] == pytest.approx(16 / variant["median_ms"] * 1e3)
        assert variant["peak_bytes"] is None
    assert result["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert "digits images of 16 pixels" in err
    assert all(name in err for name in names)


def test_bench_takes_another_source_and_changes(metasearch: Run) -> None:
    changes = ("--set", "families.0.num_ways=5", "--set", "families.0.train_per_class=2", "--data", "glyphs")
    code, out, _ = metasearch(*SMALL, *changes, "--json")
    assert code == 0
    result = json.loads(out)
    assert (result["source"], result["batch_size"], result["num_classes"]) == ("glyphs", 10, 5)


def test_bench_says_what_a_gpu_needs(metasearch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = metasearch(*SMALL, "--device", "cuda")
    assert code == 5
    assert "no CUDA device" in err and "nvidia-smi" in err and "cpu" in err


def test_a_gpu_is_timed_in_both_precisions_with_and_without_graphs() -> None:
    found = variants(NetworkConfig(engine="native"), torch.device("cuda"))
    assert {name: (network.precision, network.cuda_graphs, network.engine) for name, network in found.items()} == {
        "float32 eager": ("float32", False, "auto"),
        "float32 graph": ("float32", True, "auto"),
        "bfloat16 eager": ("bfloat16", False, "auto"),
        "bfloat16 graph": ("bfloat16", True, "auto"),
    }


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bench_times_a_gpu(metasearch: Run) -> None:
    code, out, _ = metasearch(*SMALL, "--device", "cuda", "--json")
    assert code == 0
    found = json.loads(out)["variants"]
    assert [variant["name"] for variant in found] == [
        "float32 eager",
        "float32 graph",
        "bfloat16 eager",
        "bfloat16 graph",
    ]
    assert all(variant["median_ms"] > 0 and variant["peak_bytes"] > 0 for variant in found)
