import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.errors import InvalidInputError, UnavailableError
from workers.data.arrays import ClassArrays, ClassImages
from workers.data.cache import cache_root, cached


class Builder:
    def __init__(self) -> None:
        self.num_builds = 0

    def __call__(self) -> Iterator[ClassImages]:
        self.num_builds += 1
        for index, name in enumerate(("a", "b")):
            yield ClassImages(name, name, np.full((3, 4, 4, 1), 50 + index, np.uint8))


def load(root: Path, build: Builder, size: int = 4, version: int = 1) -> ClassArrays:
    return cached(root, "toy", size, {"version": version}, build, "toy")


def entry_of(root: Path) -> Path:
    (entry,) = (path for path in root.iterdir() if path.is_dir())
    return entry


def change_byte(path: Path) -> None:
    """Changes the last byte and keeps the size; the time of change moves on whatever the clock's resolution."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 1_000_000, before + 1_000_000))


def test_entry_is_built_once_and_memory_mapped(cache: Path) -> None:
    build = Builder()
    first, second = load(cache, build), load(cache, build)
    assert build.num_builds == 1
    assert second.fingerprint == first.fingerprint
    assert isinstance(second.of_class(0), np.memmap)
    assert not second.of_class(0).flags.writeable
    assert (second.of_class(1) == 51).all()


def test_other_parameters_make_other_entries(cache: Path) -> None:
    build = Builder()
    load(cache, build)
    load(cache, build, version=2)
    load(cache, build, size=5)
    assert build.num_builds == 3


def test_truncated_entry_is_rebuilt(cache: Path) -> None:
    build = Builder()
    before = load(cache, build).fingerprint
    path = entry_of(cache) / "00001.npy"
    path.write_bytes(path.read_bytes()[:-7])
    assert load(cache, build).fingerprint == before
    assert build.num_builds == 2
    assert (load(cache, build).of_class(1) == 51).all()


def test_altered_pixels_are_rebuilt(cache: Path) -> None:
    build = Builder()
    load(cache, build)
    change_byte(entry_of(cache) / "00000.npy")
    assert (load(cache, build).of_class(0) == 50).all()
    assert build.num_builds == 2


def test_altered_class_name_is_rebuilt(cache: Path) -> None:
    build = Builder()
    load(cache, build)
    path = entry_of(cache) / "manifest.json"
    path.write_text(path.read_text().replace('"name": "a"', '"name": "evil"'))
    assert load(cache, build).class_names == ("a", "b")
    assert build.num_builds == 2


@pytest.mark.parametrize("name", ["manifest.json", "00000.npy"])
def test_missing_file_is_rebuilt(cache: Path, name: str) -> None:
    build = Builder()
    load(cache, build)
    (entry_of(cache) / name).unlink()
    load(cache, build)
    assert build.num_builds == 2


def test_failed_build_leaves_no_entry_and_the_next_succeeds(cache: Path) -> None:
    def broken() -> Iterator[ClassImages]:
        yield from Builder()()
        raise InvalidInputError("no more")

    with pytest.raises(InvalidInputError, match="no more"):
        cached(cache, "toy", 4, {"version": 1}, broken, "toy")
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert load(cache, Builder()).num_classes == 2


def test_leavings_of_a_killed_build_do_not_get_into_the_entry(cache: Path) -> None:
    load(cache, Builder())
    entry = entry_of(cache)
    entry.rename(entry.with_name(f"{entry.name}.building"))
    (entry.with_name(f"{entry.name}.building") / "00002.npy").write_bytes(b"half")
    load(cache, Builder())
    assert sorted(path.name for path in entry_of(cache).iterdir()) == ["00000.npy", "00001.npy", "manifest.json"]


def test_unwritable_cache_says_which_variable_to_set(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(UnavailableError, match="METASEARCH_CACHE"):
        load(blocked, Builder())


def test_root_comes_from_the_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == cache
    monkeypatch.delenv("METASEARCH_CACHE")
    assert cache_root() == Path.home() / ".cache" / "metasearch"


RACER = """
import sys
from pathlib import Path
import numpy as np
from workers.data.arrays import ClassImages
from workers.data.cache import cached

root, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def build():
    with (root / "builds.log").open("a") as log:
        log.write(me)
    while not (root / f"arrived-{other}").exists():
        pass
    random = np.random.default_rng(0)
    for name in "abcdefgh":
        yield ClassImages(name, name, random.integers(0, 255, (2000, 32, 32, 1), np.uint8))

(root / f"arrived-{me}").touch()
arrays = cached(root / "cache", "race", 32, {}, build, "race")
print(arrays.fingerprint)
"""


def test_two_processes_build_an_entry_once(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path), *names], stdout=subprocess.PIPE, text=True)
        for names in (("1", "2"), ("2", "1"))
    ]
    fingerprints = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert len(set(fingerprints)) == 1
    assert len(fingerprints[0]) == 64
    assert (tmp_path / "builds.log").read_text() in {"1", "2"}
