"""The native cell by itself: every build, threads, memory, refusals. `test_supernet` has it exact in whole networks."""

import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from common.config import NetworkConfig, SpaceConfig
from common.errors import UnavailableError
from common.nn.cell import Cell, Mixture
from common.nn.native import library as library_module
from common.nn.native.library import Library, choose, find
from common.nn.supernet import build_supernet
from common.space.primitives import PROFILES
from common.space.topology import Topology

LIBRARY, PROBLEM = find()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason=PROBLEM)
BASE_PLUS = PROFILES["base+"]


def builds() -> list[Path]:
    """The builds that this processor can run."""
    features = library_module._processor_features()
    folder = Path(library_module.__file__).parent
    return [
        path
        for variant, needed in library_module._VARIANTS
        if needed <= features
        for path in folder.glob(f"_cell_{variant}.*.so")
    ]


def make_cell(
    library: Library | None,
    channels: int = 5,
    nodes: int = 3,
    stride: int = 1,
    primitives: tuple[str, ...] = BASE_PLUS,
    dtype: torch.dtype = torch.float64,
    before: tuple[int, int] | None = None,
    is_reduced: bool = False,
    recompute: bool = False,
) -> Cell:
    """A cell, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        before = (channels + 2, 2 * channels + 1) if before is None else before
        cell = Cell(Topology(nodes), primitives, before, channels, stride, is_reduced, library, recompute)
    return cell.to(dtype)


def gradients(
    cell: Cell,
    size: tuple[int, int, int],
    active: tuple[tuple[int, ...], ...] | None = None,
    seed: int = 0,
) -> tuple[Tensor, list[Tensor | None]]:
    """Output, and the gradient of a random projection of it to inputs, architecture weights and weights."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(cell.parameters()).dtype
    batch, height, width = size

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    larger = (2 * height - seed % 2, 2 * width - seed // 2 % 2) if cell.input_strides[0] == 2 else (height, width)
    channels = [next(block.parameters()).shape[1] for block in cell.preprocess]
    inputs = [draw(batch, channels[0], *larger), draw(batch, channels[1], height, width)]
    inputs = [maps.requires_grad_() for maps in inputs]
    mixture = draw(cell.topology.num_edges, len(cell.primitives)).requires_grad_()
    output = cell(*inputs, Mixture(mixture, active))
    leaves = [*inputs, mixture, *cell.parameters()]
    return output, list(torch.autograd.grad((output * draw(*output.shape)).sum(), leaves, allow_unused=True))


def assert_close(actual: tuple[Tensor, list[Tensor | None]], expected: tuple[Tensor, list[Tensor | None]]) -> None:
    pairs = [(actual[0], expected[0]), *zip(actual[1], expected[1], strict=True)]
    for one, other in pairs:
        if one is None or other is None:
            assert one is None or not one.any()
            assert other is None or not other.any()
        else:
            assert (one - other).abs().max() <= 1e-10 * max(1.0, other.abs().max().item())


@pytest.mark.untraced
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 20),
    nodes=st.integers(1, 4),
    stride=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(1, 3), st.integers(2, 11), st.integers(3, 11)),
    hard=st.booleans(),
    is_reduced=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_any_shape_is_exact(
    channels: int, nodes: int, stride: int, size: tuple[int, int, int], hard: bool, is_reduced: bool, seed: int
) -> None:
    # FactorizedReduce halves the channels, and needs two.
    primitives = BASE_PLUS if channels > 1 else tuple(name for name in BASE_PLUS if name != "skip_connect")
    is_reduced = is_reduced and channels > 1
    rng = np.random.default_rng(seed)
    num_edges = Topology(nodes).num_edges
    active = tuple((int(column),) for column in rng.integers(len(primitives), size=num_edges)) if hard else None
    results = [
        gradients(make_cell(library, channels, nodes, stride, primitives, is_reduced=is_reduced), size, active, seed)
        for library in (LIBRARY, None)
    ]
    assert_close(results[0], results[1])


@pytest.mark.parametrize("path", builds(), ids=lambda path: path.name.split(".")[0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_build_and_precision(path: Path, dtype: torch.dtype) -> None:
    expected = gradients(make_cell(None), (3, 9, 8))
    output, found = gradients(make_cell(Library(path), dtype=dtype), (3, 9, 8))
    if dtype is torch.float64:
        assert_close((output, found), expected)
    else:
        # ReLU and max pooling of rounded maps differ where they tie: gradients are compared in double precision only.
        assert (output - expected[0]).abs().max() < 1e-4
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found)


def test_results_do_not_change_from_call_to_call_and_hardly_with_threads() -> None:
    cell = make_cell(LIBRARY, channels=16)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            results.append(gradients(cell, (5, 8, 8)))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert_close(result, results[0])
    for one, other in zip([results[2][0], *results[2][1]], [results[3][0], *results[3][1]], strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_only_active_ops_are_read_or_written() -> None:
    cell = make_cell(LIBRARY, nodes=2)
    chosen = BASE_PLUS.index("sep_conv_3x3")
    expected = gradients(cell, (2, 6, 6), active=((chosen,),) * 5)
    for edge in cell.edges:
        assert isinstance(edge, nn.ModuleDict)
        for name, op in edge.items():
            if name != "sep_conv_3x3":
                for weight in op.parameters():
                    weight.data.fill_(float("nan"))
    found = gradients(cell, (2, 6, 6), active=((chosen,),) * 5)
    assert_close(found, expected)
    names = [name for name, _ in cell.named_parameters()]
    for name, gradient in zip(names, found[1][3:], strict=True):
        assert (gradient is None) == ("sep_conv_3x3" not in name and "preprocess" not in name)


def test_a_retained_graph_can_be_gone_through_again() -> None:
    cell = make_cell(LIBRARY, before=(5, 5))
    maps = torch.randn(2, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    loss = cell(maps, maps, Mixture(torch.rand(9, len(BASE_PLUS), dtype=torch.float64))).square().sum()
    (first,) = torch.autograd.grad(loss, maps, retain_graph=True)
    (second,) = torch.autograd.grad(loss, maps)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, maps)


def test_not_a_number_shows() -> None:
    cell = make_cell(LIBRARY, before=(5, 5))
    maps = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    maps[0, 2, 3, 3] = float("nan")
    assert cell(maps, maps, Mixture(torch.rand(9, len(BASE_PLUS), dtype=torch.float64))).isnan().any()


MEMORY_IN_USE = """
import gc, torch
from common.nn.cell import Cell, Mixture
from common.nn.native.library import choose
from common.space.primitives import PROFILES
from common.space.topology import Topology

torch.set_num_threads(1)
library = choose("native")
cell = Cell(Topology(4), PROFILES["base"], (16, 16), 16, 1, False, library)
mixture = Mixture(torch.rand(14, 9, requires_grad=True))

def output():
    maps = torch.randn(4, 16, 16, 16, requires_grad=True)
    return cell(maps, maps, mixture).sum()

def resident_bytes():
    # Without pages of files, which come and go as the machine's memory gets scarce.
    _, resident, of_files, *_ = map(int, open("/proc/self/statm").read().split())
    return (resident - of_files) * 4096

# The C library's heap settles first.
settled = 0
for _ in range(12):
    before, held = resident_bytes(), library.held_bytes
    for _ in range(40):
        output().backward()
    gc.collect()
    settled = settled + 1 if resident_bytes() - before < 1 << 19 else 0
    if settled == 2:
        break
print("settled" if settled == 2 else "grows")
assert held * 0.9 <= library.held_bytes <= held * 1.1, (held, library.held_bytes)
output()
gc.collect()
assert library.held_bytes >= held * 0.9, (held, library.held_bytes)
print("a graph that nobody goes through gives its memory back")
library.clear()
print("held after clear:", library.held_bytes)
"""


def test_memory_is_used_again() -> None:
    # In a process of its own: what other tests left on the heap, and their threads, would be measured with it.
    done = subprocess.run([sys.executable, "-c", MEMORY_IN_USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "settled",
        "a graph that nobody goes through gives its memory back",
        "held after clear: 0",
    ]


OUT_OF_MEMORY = """
import resource, torch
from common.nn.cell import Cell, Mixture
from common.nn.native.library import choose
from common.space.primitives import PROFILES
from common.space.topology import Topology

torch.set_num_threads(1)
cell = Cell(Topology(4), PROFILES["base"], (16, 16), 16, 1, False, choose("native"))
mixture = Mixture(torch.rand(14, 9, requires_grad=True))

def step(batch):
    maps = torch.randn(batch, 16, 32, 32)
    cell(maps, maps, mixture).sum().backward()

step(2)
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
try:
    step(256)
except MemoryError as error:
    print("refused:", error)
step(2)
print("goes on")
"""


def test_too_little_memory_is_an_error_and_harms_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "refused: native cell: std::bad_alloc" in done.stdout and "goes on" in done.stdout


def test_the_choice_can_be_forced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose("pytorch") is None
    assert choose("native") is choose("auto") is LIBRARY
    network = NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 1}, engine="pytorch")
    assert all(cell.library is None for cell in build_supernet(SpaceConfig(num_nodes=1), network, 0).cells)
    find.cache_clear()
    try:
        monkeypatch.setattr(library_module, "__file__", str(tmp_path / "library.py"))
        assert choose("auto") is None
        with pytest.raises(UnavailableError, match=r"network\.engine is native, but .* compiler"):
            choose("native")
        broken = tmp_path / library_module.__dict__["sysconfig"].get_config_var("EXT_SUFFIX")
        (tmp_path / f"_cell_generic{broken.name}").write_bytes(b"not a library")
        find.cache_clear()
        with pytest.raises(UnavailableError, match="cannot be loaded"):
            choose("native")
    finally:
        find.cache_clear()


def test_processors_take_the_best_build_that_they_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for features, variant in (({"sse2"}, "generic"), ({"avx2", "fma", "bmi2"}, "avx2")):
        monkeypatch.setattr(library_module, "_processor_features", lambda features=features: frozenset(features))
        find.cache_clear()
        found = choose("native")
        assert found is not None and found.variant == variant
    monkeypatch.undo()
    find.cache_clear()


def test_ray_workers_of_one_machine_do_not_disturb_each_other() -> None:
    """Threads stand for them: the library keeps nothing between calls but the pool."""
    from concurrent.futures import ThreadPoolExecutor

    cells = [make_cell(LIBRARY) for _ in range(8)]
    expected = [gradients(cell, (2, 7, 7), seed=seed) for seed, cell in enumerate(cells)]
    run: Callable[[int], tuple[Tensor, list[Tensor | None]]] = lambda seed: gradients(  # noqa: E731
        cells[seed], (2, 7, 7), seed=seed
    )
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(run, range(8)), expected, strict=True):
            assert_close(found, wanted)


def test_a_build_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("before", library_module._Description), ("added", ctypes.c_int))

    monkeypatch.setattr(library_module, "_Description", Longer)
    find.cache_clear()
    try:
        with pytest.raises(UnavailableError, match="cannot be loaded .*another version.* install the package again"):
            choose("native")
    finally:
        find.cache_clear()


@pytest.mark.parametrize("library", [LIBRARY, None], ids=["native", "pytorch"])
def test_recomputation_changes_nothing_but_memory(library: Library | None) -> None:
    kept = gradients(make_cell(library), (2, 6, 5))
    again = gradients(make_cell(library, recompute=True), (2, 6, 5))
    for one, other in zip([kept[0], *kept[1]], [again[0], *again[1]], strict=True):
        assert one is not None and other is not None and torch.equal(one, other)


def test_memory_that_no_backward_pass_needs_is_given_back_on_the_way() -> None:
    assert LIBRARY is not None

    def peak_bytes(run: Callable[[], object]) -> int:
        """The pool holds all that was in use at a time."""
        LIBRARY.clear()
        run()
        gc.collect()
        return LIBRARY.held_bytes

    def forward(cell: Cell) -> Tensor:
        maps = torch.ones(4, 16, 16, 16)
        return cell(maps, maps, Mixture(torch.rand(14, len(BASE_PLUS))))

    kept, recomputed = (
        make_cell(LIBRARY, 16, 4, dtype=torch.float32, before=(16, 16), recompute=r) for r in (False, True)
    )
    with torch.no_grad():
        unneeded = peak_bytes(lambda: forward(kept))
    everything = peak_bytes(lambda: forward(kept))
    assert unneeded < 0.5 * everything
    assert peak_bytes(lambda: forward(recomputed)) == unneeded
    assert torch.equal(forward(recomputed), forward(kept))
