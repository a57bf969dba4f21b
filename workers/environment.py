"""What results are computed with."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """What a result was computed with."""
    packages = {name: version(name) for name in ("torch", "ray", "numpy", "meta-arch-search")}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {
        "python": platform.python_version(),
        **packages,
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "device": device,
    }


def processor_name() -> str:
    """Of this machine's CPU, as its maker calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
