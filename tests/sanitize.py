"""Builds the native library with the address and undefined-behaviour sanitizers and runs its tests on that build.

Python itself is not built with them, so their runtime is loaded before it; leaks are those of Python and torch, and are
not looked for here (`test_memory_is_used_again` does). Fresh memory holds NaN, which tells of what is read unwritten.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "common" / "nn" / "native"
FLAGS = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fno-math-errno", "-fno-omit-frame-pointer", "-Wall", "-Wextra"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-DMETASEARCH_POISON"]


def main() -> int:
    """Returns the exit code of the tests."""
    library = NATIVE / f"_cell_generic{sysconfig.get_config_var('EXT_SUFFIX')}"
    others = [path for path in NATIVE.glob("_cell_*.so") if path != library]
    # With the C++ runtime, as torch throws.
    preload = [
        subprocess.run(["c++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    kept = {path: path.read_bytes() for path in (library, *others) if path.exists()}
    environment = os.environ | {
        "LD_PRELOAD": ":".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    tests = [
        "tests/common/nn",
        "tests/common/meta/test_aggregate.py",
        "-k",
        "not memory and not build and not processors",
    ]
    try:
        for path in others:
            path.unlink()
        library.unlink(missing_ok=True)
        sources = [str(path) for path in sorted(NATIVE.glob("*.cpp"))]
        command = ["c++", *FLAGS, *SANITIZERS, "-shared", "-fPIC", *sources, "-o", str(library)]
        subprocess.run(command, check=True)
        pytest = [sys.executable, "-m", "pytest", "-q", "--capture=no", *tests]
        return subprocess.run(pytest, env=environment, cwd=ROOT).returncode
    finally:
        for path, data in kept.items():
            path.unlink(missing_ok=True)  # a library that is loaded elsewhere stays as it is
            path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
