import io
import stat
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import DatasetRef
from common.errors import InvalidInputError, NotFoundError
from workers.data.archives import ArchiveLimits, read_archive, read_npz
from workers.data.sources import load_arrays


def load(path: Path, size: int = 8):
    return load_arrays(DatasetRef(source=str(path)), size)


def png(value: int = 7) -> bytes:
    file = io.BytesIO()
    Image.new("L", (9, 9), value).save(file, "png")
    return file.getvalue()


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


GOOD = {"cat/2.png": png(3), "dog/1.png": png(2), "cat/1.png": png(1)}  # in no order
WRITERS = {"a.zip": write_zip, "a.tar": lambda path, members: write_tar(path, members, "w"), "a.tgz": write_tar}


@pytest.mark.parametrize("name", WRITERS)
def test_archive_equals_the_folder_that_was_packed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "pets"
    for member, data in GOOD.items():
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (folder / member).write_bytes(data)
    packed = load(WRITERS[name](tmp_path / name, GOOD))
    assert packed.class_names == ("cat", "dog")
    assert packed.fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("name", WRITERS)
def test_folder_around_all_classes_and_junk_are_passed_over(tmp_path: Path, name: str) -> None:
    members = {f"top/{member}": data for member, data in GOOD.items()}
    junk = {"__MACOSX/top/cat/._1.png": b"x", "top/.DS_Store": b"x", "top/README.md": b"x"}
    arrays = load(WRITERS[name](tmp_path / name, members | junk))
    assert arrays.class_names == ("cat", "dog")
    assert arrays.of_class(0)[1, 0, 0, 0] == 3


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("member", ["../cat/x.png", "cat/../../x.png", "/etc/x.png", "cat\\..\\..\\x.png", "C:/x.png"])
def test_path_escape_is_refused(tmp_path: Path, name: str, member: str) -> None:
    with pytest.raises(InvalidInputError, match="points outside the archive"):
        load(WRITERS[name](tmp_path / name, GOOD | {member: png()}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_tar_with_link_or_device_is_refused(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", GOOD, "w")
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("cat/passwd.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InvalidInputError, match=r"'cat/passwd\.png' is a link or device"):
        load(path)


def test_zip_with_symlink_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", GOOD)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("cat/passwd.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InvalidInputError, match=r"'cat/passwd\.png' is a link or device"):
        load(path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ArchiveLimits(max_members=3), "more than 3 members"),
        (ArchiveLimits(max_member_bytes=9_999), r"'cat/bomb\.txt' unpacks to 10000 bytes"),
        (ArchiveLimits(max_total_bytes=10_000), "unpacks to more than 10000 bytes"),
        (ArchiveLimits(max_pixel_bytes=3 * 64 - 1), "more than 191 bytes of images"),
    ],
)
def test_archive_beyond_a_limit_is_refused(tmp_path: Path, name: str, limits: ArchiveLimits, message: str) -> None:
    path = WRITERS[name](tmp_path / name, GOOD | {"cat/bomb.txt": bytes(10_000)})
    assert len(list(read_archive(path, 8))) == 2
    with pytest.raises(InvalidInputError, match=message):
        list(read_archive(path, 8, limits))


def test_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", GOOD | {"dog/2.png": png() + bytes(5_000_000)})
    size = (len(png()) + 5_000_000).to_bytes(4, "little")
    data = path.read_bytes()
    assert data.count(size) == 2  # the local header and the directory
    path.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(InvalidInputError, match=r"a\.zip"):
        load(path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cat/1.png": png(), "cat/2.png": png()}, r"has 1 class \('cat'\)"),
        ({"notes.txt": b"x"}, "has 0 class"),
        (GOOD | {"loose.png": png()}, r"'loose\.png' lies outside the class folders"),
        (GOOD | {"emu/notes.txt": b"x"}, "class 'emu' has no images"),
        (GOOD | {"dog/bad.png": b"no image"}, r"dog/bad\.png is not a readable image"),
    ],
)
def test_unsound_contents_are_named(tmp_path: Path, name: str, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load(WRITERS[name](tmp_path / name, members))


@pytest.mark.parametrize("name", WRITERS)
def test_truncated_archive_is_named(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, GOOD)
    data = path.read_bytes()
    path.write_bytes(data[: 700 if name == "a.tar" else len(data) // 2])
    with pytest.raises(InvalidInputError, match=rf"{name} is not a readable archive"):
        load(path)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b")
    with pytest.raises(InvalidInputError, match=r"data\.csv is neither a folder nor one of \.zip"):
        load(tmp_path / "data.csv")


def test_missing_archive_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"missing\.zip"):
        load(tmp_path / "missing.zip")


IMAGES = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)


def test_npz_without_channels_and_with_text_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=IMAGES, labels=np.array(["b", "a", "b"]))
    arrays = load(path, 4)
    assert arrays.class_names == ("a", "b")
    assert np.array_equal(arrays.of_class(1)[..., 0], IMAGES[[0, 2]])


def test_npz_with_colour_is_resized_and_integer_labels_sort_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.full((3, 10, 10, 3), 9, np.uint8), labels=np.array([10, 9, 9]))
    arrays = load(path, 4)
    assert arrays.class_names == ("9", "10")
    assert arrays.of_class(0).shape == (2, 4, 4, 3)
    assert (arrays.of_class(0) == 9).all()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"images": IMAGES}, "no array 'labels' but images"),
        ({"images": IMAGES.astype(float), "labels": np.arange(3)}, "images are float64; convert them to uint8"),
        ({"images": IMAGES[0], "labels": np.arange(4)}, r"images have shape \(4, 4\)"),
        ({"images": IMAGES.reshape(3, 4, 2, 2), "labels": np.arange(3)}, "1 or 3 channels"),
        ({"images": IMAGES, "labels": np.arange(2)}, "labels are int64"),
        ({"images": IMAGES, "labels": np.arange(3.0)}, "labels are float64"),
        ({"images": IMAGES, "labels": np.zeros(3, int)}, r"has 1 class \('0'\)"),
        ({"images": IMAGES, "labels": np.array([{}, 1, "a"], dtype=object)}, "without objects"),
        ({"images": np.array([IMAGES, 1], dtype=object), "labels": np.arange(2)}, "without objects"),
    ],
)
def test_unsound_npz_is_refused(tmp_path: Path, contents: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **contents)
    with pytest.raises(InvalidInputError, match=message):
        load(path)


def test_pickle_in_an_npz_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    path = tmp_path / "a.npz"
    np.savez(path, images=np.array([Evil()], dtype=object), labels=np.arange(1))
    with pytest.raises(InvalidInputError, match="without objects"):
        load(path)
    assert not (tmp_path / "pwned").exists()


def test_npz_beyond_the_limit_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros((3, 100, 100), np.uint8), labels=np.arange(3))
    with pytest.raises(InvalidInputError, match="at most 20000 are read"):
        read_npz(path, 8, ArchiveLimits(max_total_bytes=20_000))


def test_npz_whose_header_promises_too_much_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000)})
    path = write_zip(tmp_path / "a.npz", {"images.npy": header.getvalue(), "labels.npy": b""})
    with pytest.raises(InvalidInputError, match=r"a\.npz is not a readable npz"):
        load(path)


def test_broken_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InvalidInputError, match=r"a\.npz is not a readable npz"):
        load(tmp_path / "a.npz")
