import unicodedata

import numpy as np
import pytest
from PIL import ImageFont

from common.errors import UnavailableError
from workers.data.arrays import in_memory
from workers.data.glyphs import FACES, render_glyphs, upright_glyph
from workers.data.scripts import SCRIPTS, Script

FEW = (Script("greek", "GREEK SMALL LETTER", "03B2 03BC"), Script("hebrew", "HEBREW LETTER", "05D0"))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel().astype(float), second.ravel().astype(float))[0, 1])


def test_characters_become_classes_grouped_by_script() -> None:
    classes = list(render_glyphs(FEW, images_per_class=3))
    assert [(entry.name, entry.group) for entry in classes] == [
        ("greek/beta", "greek"),
        ("greek/mu", "greek"),
        ("hebrew/alef", "hebrew"),
    ]
    assert all(entry.images.shape == (3, 32, 32, 1) and entry.images.dtype == np.uint8 for entry in classes)


def test_rendering_is_bitwise_repeatable_and_independent_of_what_else_is_rendered() -> None:
    together = list(render_glyphs(FEW, images_per_class=4))
    alone = list(render_glyphs(FEW[1:], images_per_class=2))
    assert np.array_equal(together[2].images[:2], alone[0].images)
    assert in_memory(together, "x").fingerprint == in_memory(render_glyphs(FEW, images_per_class=4), "x").fingerprint


def test_images_of_a_character_differ_but_resemble_each_other_more_than_another() -> None:
    beta, mu, _ = (entry.images for entry in render_glyphs(FEW, images_per_class=30))
    assert len({image.tobytes() for image in beta}) == 30
    prototypes = [images[:15].mean(axis=0) for images in (beta, mu)]
    hits = [
        correlation(image, prototypes[label]) > correlation(image, prototypes[1 - label])
        for label, images in enumerate((beta, mu))
        for image in images[15:]
    ]
    assert np.mean(hits) > 0.8
    # Faces, angles and pens vary: most pairs of images are far from the same picture.
    pairs = [correlation(beta[index], beta[index + 1]) for index in range(29)]
    assert np.median(pairs) < 0.85


@pytest.mark.parametrize("size", [16, 32, 48, 84])
def test_every_size_shows_the_same_drawing(size: int) -> None:
    (drawn,) = (entry.images[0, :, :, 0] for entry in render_glyphs(FEW[1:], 1, size))
    (native,) = (entry.images[0, :, :, 0] for entry in render_glyphs(FEW[1:], 1))
    assert drawn.shape == (size, size)
    positions = np.arange(16) * size // 16
    native_positions = np.arange(16) * 2
    assert correlation(drawn[np.ix_(positions, positions)], native[np.ix_(native_positions, native_positions)]) > 0.5


def test_character_without_a_font_is_named() -> None:
    with pytest.raises(UnavailableError, match=r"U\+4E00 \(han\)"):
        list(render_glyphs([Script("han", "CJK", "4E00")], images_per_class=1))


def test_full_set_is_large_distinct_and_nowhere_blank() -> None:
    assert len(SCRIPTS) >= 24
    codes = [code for script in SCRIPTS for code in script.codes]
    assert len(codes) >= 400
    assert len(set(codes)) == len(codes)
    assert max(len(script.codes) for script in SCRIPTS) <= 24
    assert all(unicodedata.category(chr(code))[0] not in "MCZ" for code in codes)

    classes = list(render_glyphs(images_per_class=2))
    assert len({entry.name for entry in classes}) == len(codes)
    # Ink is far above the noise, which stays below 100: a blank image has no such pixel.
    inked = np.array([(entry.images > 140).sum(axis=(1, 2, 3)) for entry in classes])
    assert inked.min() >= 4
    assert np.quantile(inked, 0.02) >= 12

    shapes = np.stack([upright_glyph(code).ravel().astype(float) for code in codes])
    shapes -= shapes.mean(axis=1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    similar = shapes @ shapes.T - 2 * np.eye(len(codes))
    first, second = np.unravel_index(similar.argmax(), similar.shape)
    assert similar.max() < 0.95, (hex(codes[first]), hex(codes[second]))


def test_no_face_draws_a_character_as_its_box_for_missing_ones() -> None:
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    num_checked = 0
    for file_name in FACES:
        path = f"{get_data_path()}/fonts/ttf/{file_name}"
        font = ImageFont.truetype(path, 48, layout_engine=ImageFont.Layout.BASIC)
        box = bytes(font.getmask("\U0010ffff"))
        covered = FT2Font(path).get_charmap()
        for code in (code for script in SCRIPTS for code in script.codes if code in covered):
            num_checked += 1
            assert bytes(font.getmask(chr(code))) != box, (file_name, hex(code))
    assert num_checked > 1000
