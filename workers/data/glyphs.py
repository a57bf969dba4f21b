"""Glyphs: characters of many scripts, drawn as if by many hands from the fonts that matplotlib ships.

A class is a character, a group is a script. Every image draws a face, a wobbly affine map, a pen and some noise from
a stream of its own, so that equal library versions give bitwise equal images. White ink on black, one channel.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter, ImageFont

from common.errors import UnavailableError
from common.streams import stream
from workers.data.arrays import ClassImages
from workers.data.images import resize_square
from workers.data.scripts import SCRIPTS, Script

NATIVE_SIZE = 32
IMAGES_PER_CLASS = 40
RENDERER_VERSION = 1
"""Part of the cache key: raise it with every change of what is drawn."""

FACES = tuple(
    f"{family}{style}.ttf"
    for family, styles in {
        "DejaVuSans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "DejaVuSerif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "STIXGeneral": ("", "Bol", "Italic", "BolIta"),
    }.items()
    for style in styles
)
"""Files of the faces that a character may be drawn in. Those whose character map lacks it are passed over."""

_MAX_RENDER_SIZE = 64  # larger images are enlarged: drawing costs the square of the size
_SUPERSAMPLING = 3
_INK_FRACTION = 0.62  # longest side of the upright glyph, as a share of the image
_FONT_SIZE = 128
_GRID = 3  # cells per side of the mesh that makes strokes wobble


@dataclass(frozen=True)
class _Face:
    font: ImageFont.FreeTypeFont
    codes: frozenset[int]


def render_glyphs(
    scripts: Iterable[Script] = SCRIPTS, images_per_class: int = IMAGES_PER_CLASS, image_size: int = NATIVE_SIZE
) -> Iterator[ClassImages]:
    """Draws every character of `scripts`, class by class.

    Args:
        scripts: what to draw; groups of the classes.
        images_per_class: images of each character. Image i does not depend on how many there are.
        image_size: height and width in pixels. Drawn at 32 px, or at 64 px for anything larger, then resized.

    Yields:
        Classes in the order of `scripts`, images uint8 (images_per_class, image_size, image_size, 1).

    Raises:
        UnavailableError: the fonts are missing, or no face has a character.
    """
    faces = _load_faces()
    side = NATIVE_SIZE if image_size <= NATIVE_SIZE else _MAX_RENDER_SIZE
    for script in scripts:
        for code in script.codes:
            uprights = [_upright(face.font, chr(code), side * _SUPERSAMPLING) for face in faces if code in face.codes]
            if not uprights:
                raise UnavailableError(
                    f"no font of matplotlib has U+{code:04X} ({script.name}); install matplotlib >= 3.10"
                )
            name = script.class_name(code)
            drawn = [resize_square(_draw(uprights, side, name, index), image_size) for index in range(images_per_class)]
            yield ClassImages(name, script.name, np.stack(drawn))


def upright_glyph(code: int, size: int = NATIVE_SIZE) -> UInt8[np.ndarray, "size size"]:
    """A character as its first face has it, centered and scaled to a common longest side; no randomness.

    Raises:
        UnavailableError: no face has the character.
    """
    for face in _load_faces():
        if code in face.codes:
            large = _upright(face.font, chr(code), size * _SUPERSAMPLING)
            return np.asarray(large.reduce(_SUPERSAMPLING))
    raise UnavailableError(f"no font of matplotlib has U+{code:04X}; install matplotlib >= 3.10")


def _load_faces() -> list[_Face]:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    faces = []
    for file_name in FACES:
        path = folder / file_name
        if not path.is_file():
            raise UnavailableError(f"the font {path} is missing; reinstall matplotlib")
        # The basic layout draws the character alone and needs no shaping library, which not every build has.
        font = ImageFont.truetype(str(path), _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
        faces.append(_Face(font, frozenset(FT2Font(str(path)).get_charmap())))
    return faces


def _upright(font: ImageFont.FreeTypeFont, character: str, canvas_size: int) -> Image.Image:
    """The ink of a character, its longest side `_INK_FRACTION` of a square canvas, centered."""
    left, top, right, bottom = font.getbbox(character)
    width, height = math.ceil(right - left), math.ceil(bottom - top)
    sheet = Image.new("L", (width + 8, height + 8))
    mask = font.getmask(character, mode="L")
    sheet.paste(Image.frombytes("L", mask.size, bytes(mask)), (4, 4))
    box = sheet.getbbox()
    canvas = Image.new("L", (canvas_size, canvas_size))
    if box is None:
        return canvas
    ink = sheet.crop(box)
    factor = _INK_FRACTION * canvas_size / max(ink.size)
    ink = ink.resize((max(1, round(ink.width * factor)), max(1, round(ink.height * factor))), Image.Resampling.BICUBIC)
    canvas.paste(ink, ((canvas_size - ink.width) // 2, (canvas_size - ink.height) // 2))
    return canvas


def _draw(uprights: list[Image.Image], side: int, name: str, index: int) -> UInt8[np.ndarray, "side side 1"]:
    """One image of a character: another face, hand, pen and sensor each time."""
    random = stream(RENDERER_VERSION, "glyphs", name, index)
    upright = uprights[int(random.integers(len(uprights)))]
    canvas = upright.transform(
        upright.size, Image.Transform.MESH, _wobbly_mesh(random, upright.width), Image.Resampling.BILINEAR
    )
    pixel = upright.width / NATIVE_SIZE
    soft = canvas.filter(ImageFilter.GaussianBlur(pixel * random.uniform(0.3, 0.75)))
    # A low cut through the blurred strokes makes a broad pen, a high one a fine pen. It is relative to the peak, so
    # that the hairlines of light faces survive.
    peak = max(1, int(soft.getextrema()[1]))  # type: ignore[arg-type]  # one band: a pair of numbers
    cut = peak * random.uniform(0.15, 0.45)
    gain = random.uniform(2.0, 5.0) * 255 / peak
    levels = np.clip((np.arange(256) - cut) * gain, 0, 255)
    inked = np.asarray(soft.point(levels.astype(np.uint8).tolist()).reduce(_SUPERSAMPLING), np.float64)
    noise = random.normal(0.0, random.uniform(2.0, 14.0), (NATIVE_SIZE, NATIVE_SIZE))
    noise = noise.repeat(side // NATIVE_SIZE, axis=0).repeat(side // NATIVE_SIZE, axis=1)
    image = np.clip(inked * random.uniform(0.7, 1.0) + noise, 0, 255)
    return image.astype(np.uint8)[:, :, None]


_Box = tuple[int, int, int, int]
_Quad = tuple[float, float, float, float, float, float, float, float]


def _wobbly_mesh(random: np.random.Generator, canvas_size: int) -> list[tuple[_Box, _Quad]]:
    """A random affine map whose grid points are each moved a little, as PIL's list of (target box, source corners)."""
    angle = math.radians(random.uniform(-20.0, 20.0))
    width, height = random.uniform(0.8, 1.12, 2)
    shear = random.uniform(-0.2, 0.2)
    shift = random.uniform(-0.07, 0.07, 2) * canvas_size
    wobble = random.normal(0.0, 0.02, (_GRID + 1, _GRID + 1, 2)) * canvas_size
    cos, sin = math.cos(angle), math.sin(angle)
    center = canvas_size / 2

    def source(column: int, row: int) -> tuple[float, float]:
        x = column * canvas_size / _GRID - center - shift[0]
        y = row * canvas_size / _GRID - center - shift[1]
        x, y = cos * x + sin * y, cos * y - sin * x
        x, y = (x + shear * y) / width, y / height
        return x + center + wobble[row, column, 0], y + center + wobble[row, column, 1]

    mesh = []
    for row in range(_GRID):
        for column in range(_GRID):
            box = tuple(round(edge * canvas_size / _GRID) for edge in (column, row, column + 1, row + 1))
            corners = (
                source(column, row),
                source(column, row + 1),
                source(column + 1, row + 1),
                source(column + 1, row),
            )
            mesh.append(((box[0], box[1], box[2], box[3]), (*corners[0], *corners[1], *corners[2], *corners[3])))
    return mesh
