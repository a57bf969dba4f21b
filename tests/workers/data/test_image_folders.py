import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config import DatasetRef
from common.errors import InvalidInputError, NotFoundError
from workers.data import images
from workers.data.images import decode_squares, resize_square
from workers.data.sources import load_arrays


def load(path: Path, size: int = 8):
    return load_arrays(DatasetRef(source=str(path)), size)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises an image of that size and holds none."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT")
    packed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_subfolders_are_classes_in_order_of_their_names(tmp_path: Path, write_images) -> None:
    arrays = load(write_images(tmp_path / "pets", {"dog": 2, "cat": 3}))
    assert arrays.class_names == arrays.groups == ("cat", "dog")
    assert [arrays.num_images(0), arrays.num_images(1)] == [3, 2]
    assert arrays.image_shape == (8, 8, 3)
    # Colours survive: dog was written first (red 5), cat second (red 15), green counts the images.
    assert arrays.of_class(0)[2, 4, 4].tolist() == [15, 2, 200]
    assert arrays.of_class(1)[1, 4, 4].tolist() == [5, 1, 200]


def test_gray_folder_has_one_channel_and_one_colour_image_makes_three(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "mixed", {"a": 1, "b": 1})
    Image.new("L", (9, 9), 77).save(folder / "a" / "000.png")
    Image.new("L", (9, 9), 78).save(folder / "b" / "000.png")
    gray = load(folder)
    assert gray.image_shape == (8, 8, 1)
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "b" / "001.png")
    colour = load(folder)
    assert colour.image_shape == (8, 8, 3)
    assert colour.of_class(0)[0, 0, 0].tolist() == [77, 77, 77]


def test_nested_images_count_and_other_files_do_not(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 1, "dog": 1})
    write_images(folder / "cat" / "deeper", {"down": 2})
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / ".hidden.png").write_text("x")
    (folder / "README").write_text("x")
    assert load(folder).num_images(0) == 3


def test_changed_file_rebuilds_the_entry(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 1, "dog": 1})
    before = load(folder).fingerprint
    Image.new("RGB", (30, 30), (9, 9, 9)).save(folder / "cat" / "000.png")
    after = load(folder)
    assert after.fingerprint != before
    assert after.of_class(0)[0, 0, 0].tolist() == [9, 9, 9]


def test_file_changed_to_another_of_equal_size_rebuilds_the_entry(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 1, "dog": 1})
    path = folder / "cat" / "!.bmp"
    for value in (50, 60):
        Image.new("RGB", (9, 9), (value, 0, 0)).save(path)
        os.utime(path, ns=(value, value))
        assert load(folder).of_class(0)[0, 0, 0].tolist() == [value, 0, 0]


def test_unreadable_image_is_named(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 2, "dog": 1})
    (folder / "cat" / "001.png").write_text("this is no image")
    with pytest.raises(InvalidInputError, match=r"cat/001\.png is not a readable image"):
        load(folder)


def test_truncated_image_is_named(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 1, "dog": 1})
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(folder / "cat" / "000.png")
    path = folder / "cat" / "000.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InvalidInputError, match=r"cat/000\.png is not a readable image"):
        load(folder)


def test_empty_class_is_named(tmp_path: Path, write_images) -> None:
    folder = write_images(tmp_path / "pets", {"cat": 1, "dog": 1})
    (folder / "emu").mkdir()
    with pytest.raises(InvalidInputError, match="class 'emu' has no images"):
        load(folder)


def test_single_class_is_refused(tmp_path: Path, write_images) -> None:
    with pytest.raises(InvalidInputError, match="has 1 subfolders"):
        load(write_images(tmp_path / "pets", {"cat": 3}))


def test_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 9_000)], ids=["PIL refuses", "PIL warns"])
def test_decompression_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInputError, match="more than 89478485 pixels"):
        decode_squares(png_header(*size), "bomb.png", (8,))


def test_pixel_limit_holds_whatever_limit_the_process_gave_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(InvalidInputError, match="more than 99 pixels"):
        decode_squares(png_header(10, 10), "large.png", (8,))


def test_long_side_is_cropped_around_the_center() -> None:
    wide = np.zeros((4, 12, 1), np.uint8)
    wide[:, 4:8] = 200
    assert (resize_square(wide, 4) == 200).all()
    tall = wide.transpose(1, 0, 2).copy()
    assert (resize_square(tall, 4) == 200).all()


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert np.abs(resize_square(checkerboard, 8).astype(int) - 127).max() <= 2


def test_sixteen_bit_gray_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    file = BytesIO()
    Image.fromarray(ramp).save(file, "png")
    (square,) = decode_squares(file.getvalue(), "ramp.png", (8,))
    assert square[:, :, 0].tolist() == (ramp >> 8).tolist()


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    file = BytesIO()
    image.save(file, "png", transparency=bytes([0, 128]))
    (square,) = decode_squares(file.getvalue(), "palette.png", (8,))
    assert square[0, 0].tolist() == [200, 100, 50]


def test_jpeg_is_not_decoded_below_the_size_asked_for() -> None:
    stripes = np.tile(np.repeat(np.array([40, 200], np.uint8), 8), (128, 8))
    file = BytesIO()
    Image.fromarray(stripes).save(file, "jpeg", quality=95)
    (square,) = decode_squares(file.getvalue(), "stripes.jpg", (32,))
    expected = resize_square(stripes[:, :, None], 32)
    assert np.abs(square.astype(int) - expected).mean() < 6
