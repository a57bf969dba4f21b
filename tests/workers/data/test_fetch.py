"""Fetching data files: what is reused, what is refused, and that nothing half-fetched is ever seen."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from pydantic import ValidationError

from common.config import DatasetRef
from common.errors import CorruptArtifactError, InvalidInputError, NotFoundError, UnavailableError
from common.tasks import DatasetFile
from workers.data.fetch import fetch
from workers.data.sources import load_arrays

DATA = b"not read as images here" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """A storage of its own for each test, that other processes do not see."""
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    storage.pipe_file("/data/a.zip", DATA)
    yield storage
    storage.store.clear()


@pytest.fixture
def server() -> Iterator[str]:
    """A web server that knows /a.zip, refuses /secret.zip, and knows nothing of ranges."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = {"/a.zip": 200, "/secret.zip": 403}.get(self.path, 404)
            body = DATA if status == 200 else b"no"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def memory_file(sha256: str | None = None, url: str = "memory://data/a.zip", suffix: str = ".zip") -> DatasetFile:
    return DatasetFile(url=url, sha256=sha256, suffix=suffix)


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_fetched_under_its_hash(memory: fsspec.AbstractFileSystem, tmp_path: Path):
    path = fetch(memory_file(SHA256), tmp_path)
    assert path == tmp_path / "fetched" / f"{SHA256}.zip"
    assert path.read_bytes() == DATA
    assert files_below(tmp_path) == [path.name], "no temporary file stays"


def test_a_file_of_unknown_hash_is_fetched_under_the_hash_of_its_address(
    memory: fsspec.AbstractFileSystem, tmp_path: Path
):
    path = fetch(memory_file(), tmp_path)
    assert path.name == hashlib.sha256(b"memory://data/a.zip").hexdigest() + ".zip"
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("sha256", [SHA256, SHA256.upper(), None])
def test_a_file_that_is_there_is_not_fetched_again(
    memory: fsspec.AbstractFileSystem, tmp_path: Path, sha256: str | None
):
    first = fetch(memory_file(sha256), tmp_path)
    memory.rm_file("/data/a.zip")
    assert fetch(memory_file(sha256), tmp_path) == first
    with pytest.raises(NotFoundError):
        fetch(memory_file(sha256), tmp_path / "another machine")


def test_the_same_contents_from_elsewhere_are_not_fetched_again(memory: fsspec.AbstractFileSystem, tmp_path: Path):
    first = fetch(memory_file(SHA256), tmp_path)
    assert fetch(memory_file(SHA256, "memory://moved/b.zip"), tmp_path) == first


def test_a_file_with_another_hash_is_refused_and_not_kept(memory: fsspec.AbstractFileSystem, tmp_path: Path):
    wanted = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(CorruptArtifactError, match=f"memory://data/a.zip has SHA-256 {SHA256}, not {wanted}"):
        fetch(memory_file(wanted), tmp_path)
    assert files_below(tmp_path) == []
    memory.pipe_file("/data/a.zip", b"something else")
    assert fetch(memory_file(wanted), tmp_path).read_bytes() == b"something else"


def test_what_a_killed_process_left_behind_is_overwritten(memory: fsspec.AbstractFileSystem, tmp_path: Path):
    left = tmp_path / "fetched" / f"{SHA256}.zip.fetching"
    left.parent.mkdir()
    left.write_bytes(b"half" * 100_000)
    assert fetch(memory_file(SHA256), tmp_path).read_bytes() == DATA
    assert not left.exists()


def test_many_at_once_fetch_once(memory: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched: list[str] = []
    get_file = type(memory).get_file

    def counting(self: fsspec.AbstractFileSystem, rpath: str, lpath: str) -> None:
        fetched.append(rpath)
        get_file(self, rpath, lpath)

    monkeypatch.setattr(type(memory), "get_file", counting)
    start = threading.Barrier(4)
    paths: list[Path] = []

    def work() -> None:
        start.wait()
        paths.append(fetch(memory_file(SHA256), tmp_path))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4 and len(set(paths)) == 1
    assert len(fetched) == 1


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_a_local_file_of_unknown_hash_is_used_where_it_is(tmp_path: Path, scheme: str):
    original = tmp_path / "a.zip"
    original.write_bytes(DATA)
    assert fetch(DatasetFile(url=f"{scheme}{original}", suffix=".zip"), tmp_path / "cache") == original
    assert not (tmp_path / "cache").exists()


def test_a_local_file_with_a_hash_is_copied_and_checked(tmp_path: Path):
    original = tmp_path / "a.zip"
    original.write_bytes(DATA)
    path = fetch(DatasetFile(url=original.as_uri(), sha256=SHA256, suffix=".zip"), tmp_path / "cache")
    assert path != original and path.read_bytes() == DATA
    original.write_bytes(DATA + b"!")
    with pytest.raises(CorruptArtifactError):
        fetch(DatasetFile(url=original.as_uri(), sha256=SHA256, suffix=".zip"), tmp_path / "another cache")


def test_a_local_file_of_another_name_is_given_its_suffix(tmp_path: Path):
    original = tmp_path / "blob"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 8, 8), dtype=np.uint8)
    with original.open("wb") as file:
        np.savez(file, images=images, labels=np.array([0, 0, 0, 1, 1, 1]))
    path = fetch(DatasetFile(url=original.as_uri(), suffix=".npz"), tmp_path / "cache")
    arrays = load_arrays(DatasetRef(source=str(path)), 8)
    assert [arrays.num_images(index) for index in range(2)] == [3, 3]
    assert np.array_equal(np.asarray(arrays.of_class(1))[..., 0], images[3:])


def test_a_file_from_a_web_server_is_fetched(server: str, tmp_path: Path):
    path = fetch(DatasetFile(url=f"{server}/a.zip", sha256=SHA256, suffix=".zip"), tmp_path)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(("name", "error"), [("none.zip", NotFoundError), ("secret.zip", UnavailableError)])
def test_what_a_web_server_refuses_is_an_error_that_names_the_address(
    server: str, tmp_path: Path, name: str, error: type[Exception]
):
    with pytest.raises(error, match=f"{server}/{name}"):
        fetch(DatasetFile(url=f"{server}/{name}", suffix=".zip"), tmp_path)
    assert files_below(tmp_path) == []


def test_a_web_server_that_does_not_answer_is_unavailable(tmp_path: Path):
    # Port 1 of this machine: nobody listens.
    with pytest.raises(UnavailableError, match="127.0.0.1:1/a.zip"):
        fetch(DatasetFile(url="http://127.0.0.1:1/a.zip", suffix=".zip"), tmp_path)


@pytest.mark.parametrize("url", ["memory://data/none.zip", "file:///none.zip", "/none.zip", "file:///none"])
def test_a_file_that_does_not_exist_is_not_found(memory: fsspec.AbstractFileSystem, tmp_path: Path, url: str):
    with pytest.raises(NotFoundError, match="there is no file"):
        fetch(memory_file(url=url), tmp_path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("suffix", ["", ".exe", "zip", "/../../a.zip"])
def test_another_suffix_is_refused(memory: fsspec.AbstractFileSystem, tmp_path: Path, suffix: str):
    with pytest.raises(InvalidInputError, match="suffix must be one of .zip, .npz, .tar"):
        fetch(memory_file(SHA256, suffix=suffix), tmp_path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("url", ["memory://data", "file:///tmp"])
def test_a_folder_is_refused(memory: fsspec.AbstractFileSystem, tmp_path: Path, url: str):
    with pytest.raises(InvalidInputError, match=f"{url} is a folder"):
        fetch(memory_file(url=url), tmp_path)
    assert list((tmp_path / "fetched").glob("*.fetching")) == []


def test_an_unknown_kind_of_storage_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInputError, match="gopher://host/a.zip"):
        fetch(memory_file(url="gopher://host/a.zip"), tmp_path)


def test_a_storage_whose_package_is_missing_is_unavailable(tmp_path: Path):
    fsspec.register_implementation("nowhere", "no_such_package.Storage", errtxt="install no_such_package", clobber=True)
    with pytest.raises(UnavailableError, match="install no_such_package"):
        fetch(memory_file(url="nowhere://a.zip"), tmp_path)


def test_a_cache_that_cannot_be_written_to_is_unavailable(memory: fsspec.AbstractFileSystem, tmp_path: Path):
    (tmp_path / "cache").write_bytes(b"a file, not a folder")
    with pytest.raises(UnavailableError, match="METASEARCH_CACHE"):
        fetch(memory_file(SHA256), tmp_path / "cache")


@pytest.mark.parametrize("sha256", ["", "../" * 21 + "x", SHA256[:-1], SHA256 + "0", "g" * 64, SHA256 + "\n"])
def test_what_is_no_hash_is_refused(sha256: str):
    with pytest.raises(ValidationError, match="sha256"):
        memory_file(sha256)
