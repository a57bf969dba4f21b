"""Measuring a network's parts: what is measured, what is kept of an interrupted call, what is refused."""

import itertools
import json

import numpy as np
import pytest
import torch

import workers.profiling
from common.errors import ConflictError, CorruptArtifactError, InvalidInputError, UnavailableError
from common.latency import LatencyTable, network_ms
from common.network_config import network_config
from common.nn.full import build_full_network
from common.storage import ArtifactFolder
from workers.device import device_named, elapsed_ms
from workers.profiling import Check, ProfileSpec, check, profile, random_genotype

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NETWORK = network_config("cifar", channels=4, num_cells=3, num_classes=3, image_size=8, auxiliary=False)
SPEC = ProfileSpec(NETWORK, ("max_pool_3x3", "skip_connect", "sep_conv_3x3"), num_nodes=2, num_repeats=3)


def test_a_profile_times_every_op_of_every_shape_and_all_other_parts_once(tmp_path):
    seen = []
    table = profile(SPEC, CPU, ArtifactFolder(tmp_path), "t.json", lambda done, total: seen.append((done, total)))
    # Three cells: normal 8 pixels, reduction 8 to 4, reduction 4 to 2 of 3 cells; so five shapes of ops.
    assert len(table.ops) == 5 * 3
    assert all(op.low_ms <= op.median_ms <= op.high_ms for op in table.ops)
    assert all(op.median_ms > 0 for op in table.ops)
    counts = {part.part: part.count for part in table.parts}
    assert counts["stem"] == counts["classifier"] == 1
    assert sum(count for name, count in counts.items() if "joining" in name) == 3
    assert sum(count for name, count in counts.items() if "fitting" in name or "reducing" in name) == 6
    assert seen[-1] == (3 * (15 + len(counts)),) * 2
    assert LatencyTable.from_json((tmp_path / "t.json").read_bytes()) == table
    assert not (tmp_path / "t.json.partial").exists()


def test_an_interrupted_profile_goes_on_with_what_it_has(tmp_path, monkeypatch):
    folder = ArtifactFolder(tmp_path)
    clock = itertools.count(1)
    monkeypatch.setattr(workers.profiling, "elapsed_ms", lambda device, call, calls: float(next(clock)))

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile(SPEC, CPU, folder, "t.json", interrupt)
    stored = json.loads((tmp_path / "t.json.partial").read_bytes())["samples"]
    assert {len(values) for values in stored.values()} == {1}
    table = profile(SPEC, CPU, folder, "t.json")
    assert table.num_repeats == 3
    first = stored["skip_connect, 4 channels, size 8, stride 1"][0]
    timing = next(
        op for op in table.ops if op.primitive == "skip_connect" and op.shape.size == 8 and op.shape.stride == 1
    )
    assert timing.low_ms == pytest.approx((first + timing.median_ms) / 2), (
        "the first of three repeats is that of before"
    )


def test_what_another_profile_left_is_refused_and_what_is_damaged_too(tmp_path):
    folder = ArtifactFolder(tmp_path)
    (tmp_path / "t.json.partial").write_text('{"header": {}, "samples": {}}')
    with pytest.raises(ConflictError, match="interrupted profile of something else"):
        profile(SPEC, CPU, folder, "t.json")
    for damaged in ("{", '{"header": {}}', '{"header": {}, "samples": {"a": [1], "b": []}}'):
        (tmp_path / "t.json.partial").write_text(damaged)
        with pytest.raises(CorruptArtifactError, match="remove it to start anew"):
            profile(SPEC, CPU, folder, "t.json")


def test_a_check_measures_whole_networks_of_the_genotypes_that_it_predicts(tmp_path):
    table = profile(SPEC, CPU, ArtifactFolder(tmp_path), "t.json")
    found = check(table, CPU, 3)
    genotypes = [random_genotype(table.primitives, 2, 0, index) for index in range(3)]
    assert found.predicted_ms == tuple(network_ms(genotype, table) for genotype in genotypes)
    network = build_full_network(genotypes[0], NETWORK, 0).eval()
    with torch.inference_mode():
        own = min(elapsed_ms(CPU, lambda: network(torch.zeros(1, 3, 8, 8))) for _ in range(5))
    assert 0.2 * own < found.measured_ms[0] < 50 * own, "of the same order as a measurement of one's own"
    with pytest.raises(InvalidInputError, match="the table is of abacus"):
        check(table.model_copy(update={"device": "abacus"}), CPU, 1)


def test_a_checks_figures_are_those_worked_out_by_hand():
    found = Check((1.0, 2.0, 3.0, 4.0), (2.0, 2.5, 6.0, 4.0))
    # Ranks 0 1 2 3 against 0 1 3 2: 1 - 6 * 2 / (4 * 15).
    assert found.rank_correlation == pytest.approx(0.8)
    assert found.median_relative_error == pytest.approx((0.2 + 0.5) / 2)
    assert found.median_ratio == pytest.approx((0.5 + 0.8) / 2)
    assert np.isnan(Check((1.0,), (1.0,)).rank_correlation)


def test_random_genotypes_keep_two_different_pairs_and_differ():
    drawn = [random_genotype(("skip_connect", "sep_conv_3x3"), 3, 0, index) for index in range(20)]
    assert all(len(set(node)) == 2 for genotype in drawn for nodes in genotype.cells.values() for node in nodes)
    assert len({genotype.to_json() for genotype in drawn}) > 15
    assert drawn[3] == random_genotype(("skip_connect", "sep_conv_3x3"), 3, 0, 3)


@pytest.mark.parametrize("name", ["cuda:", "cuda:x", "cpu:0", "auto:1", "tpu"])
def test_devices_that_are_none_are_refused(name):
    with pytest.raises(InvalidInputError, match="device must be auto, cpu or cuda"):
        device_named(name)


def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(UnavailableError):
        device_named("cuda:99")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_timed_by_events(tmp_path):
    device = device_named("cuda:0")
    large, small = (torch.zeros(size, size, device=device) for size in (4096, 64))
    slow, fast = elapsed_ms(device, lambda: large @ large, 10), elapsed_ms(device, lambda: small @ small, 10)
    assert slow > 3 * fast
    table = profile(SPEC, device, ArtifactFolder(tmp_path), "t.json")
    assert table.device_type == "cuda"
    assert check(table, device, 2).measured_ms[0] > 0
