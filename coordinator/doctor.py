"""What this machine has for metasearch, what is missing, and how to get it."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import torch

from common.errors import MetaSearchError
from common.nn.native.library import find
from common.storage import ArtifactFolder
from coordinator.cluster import connect, disconnect
from workers.data.glyphs import FACES

_GIB = 2**30
_MIN_FREE_MEMORY_GIB = 2.0
_MIN_FREE_DISK_GIB = 1.0
_MIN_SHARED_MEMORY_GIB = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        state: what was found.
        remedy: how to put it right; empty where all is well.
        is_required: whether metasearch cannot work without it.
    """

    subject: str
    state: str
    remedy: str = ""
    is_required: bool = False


def examine(run: Path, cache: Path, address: str | None) -> list[Finding]:
    """Looks at everything; starts and ends a local Ray where `address` is None.

    Args:
        run: where runs would be stored.
        cache: the node-local image cache.
        address: of the Ray cluster to look at.
    """
    checks: Sequence[Callable[[], Finding]] = (
        _packages,
        _devices,
        _cells,
        _memory,
        _shared_memory,
        lambda: _folder("artifact store", run, "--run"),
        lambda: _folder("image cache", cache, "METASEARCH_CACHE"),
        _fonts,
        lambda: _ray(address),
        _tensorboard,
    )
    return [check() for check in checks]


def is_fit(findings: Sequence[Finding]) -> bool:
    """Whether nothing that is required is missing."""
    return not any(finding.is_required and finding.remedy for finding in findings)


def _packages() -> Finding:
    names = ("torch", "torchvision", "ray")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return Finding("software", f"Python {sys.version.split()[0]}, {found}")


def _devices() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        cards = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        precisions = "float32, bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        return Finding("devices", f"{cards} ({precisions}; steps recorded as CUDA graphs); {cores} CPU cores")
    return Finding("devices", f"no CUDA device; {cores} CPU cores, one single-threaded worker on each")


def _cells() -> Finding:
    library, problem = find()
    if library is not None:
        return Finding("supernet cells", f"computed by the native cell ({library.variant})")
    return Finding("supernet cells", "computed by PyTorch, several times slower on a CPU", problem)


def _memory() -> Finding:
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    for line in Path("/proc/meminfo").read_text("utf-8").splitlines() if Path("/proc/meminfo").exists() else ():
        if line.startswith("MemAvailable:"):
            free_gib = int(line.split()[1]) * 1024 / _GIB
    remedy = "" if free_gib >= _MIN_FREE_MEMORY_GIB else f"free {_MIN_FREE_MEMORY_GIB:g} GiB, or lower num_workers"
    return Finding("free memory", f"{free_gib:.1f} GiB", remedy)


def _shared_memory() -> Finding:
    if not Path("/dev/shm").exists():
        return Finding("shared memory", "no /dev/shm; Ray uses files under /tmp, which are slower")
    free_gib = shutil.disk_usage("/dev/shm").free / _GIB
    remedy = "" if free_gib >= _MIN_SHARED_MEMORY_GIB else "enlarge /dev/shm, in a container by --shm-size=2g"
    return Finding("shared memory", f"{free_gib:.1f} GiB free in /dev/shm", remedy)


def _folder(subject: str, folder: Path, setting: str) -> Finding:
    probe = ".metasearch-doctor"
    try:
        artifacts = ArtifactFolder(folder)
        artifacts.write(probe, b"")
        artifacts.remove(probe)
    except MetaSearchError as error:
        return Finding(subject, str(error), f"make it writable, or name another by {setting}", is_required=True)
    free_gib = shutil.disk_usage(folder).free / _GIB
    remedy = "" if free_gib >= _MIN_FREE_DISK_GIB else f"free {_MIN_FREE_DISK_GIB:g} GiB, or use {setting}"
    return Finding(subject, f"{folder}, writable, {free_gib:.0f} GiB free", remedy)


def _fonts() -> Finding:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    missing = [name for name in FACES if not (folder / name).is_file()]
    remedy = "reinstall matplotlib: pip install --force-reinstall matplotlib" if missing else ""
    state = f"missing: {', '.join(missing)}" if missing else "all that the glyphs source draws with, from matplotlib"
    return Finding("fonts", state, remedy)


def _ray(address: str | None) -> Finding:
    try:
        cluster = connect(address)
    except MetaSearchError as error:
        return Finding("Ray", str(error), "see the message; ports and /tmp/ray must be free to use", is_required=True)
    disconnect()
    where = "a local cluster starts" if cluster.is_local else f"the cluster at {address} answers"
    dashboard = "with its dashboard" if cluster.dashboard_url else "without a dashboard"
    return Finding("Ray", f"{where}, {dashboard}")


def _tensorboard() -> Finding:
    if find_spec("tensorboard") is None:
        return Finding("TensorBoard", "not installed; event files are written all the same", "pip install tensorboard")
    return Finding("TensorBoard", f"{version('tensorboard')}")
