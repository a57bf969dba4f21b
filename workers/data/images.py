"""Single images: decoding files from outside safely, and making them square uint8 arrays."""

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.errors import InvalidInputError

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"}
)
"""Endings, in lower case, of the files that are taken for images. Others are passed over."""

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""What these endings stand for, in Pillow's words. No other kind is tried, whatever a file is called: some, such as
PostScript, start programs of the machine."""

MAX_IMAGE_PIXELS = 89_478_485
"""Largest image that is decoded, 256 MiB as RGB. Headers that promise more are taken for decompression bombs."""

Square = UInt8[np.ndarray, "size size channel"]

_GRAY_MODES = frozenset({"1", "L", "LA", "La"})
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)  # PIL's decoders


def decode_squares(
    data: bytes | Path, name: str, image_sizes: Sequence[int], channels: int | None = None
) -> list[Square]:
    """Decodes an image file; for each size, resizes the short side to it and crops the center of the long one.

    Args:
        data: the encoded file, or where it lies.
        name: what error messages call it.
        image_sizes: heights and widths of the results in pixels.
        channels: 1 or 3; where not given, what the file has. Transparency is dropped.

    Raises:
        InvalidInputError: not an image, truncated, or larger than `MAX_IMAGE_PIXELS`.
    """
    largest = max(image_sizes)
    try:
        with Image.open(_opened(data), formats=IMAGE_FORMATS) as file:
            _check_pixels(file, name)
            # JPEG decodes at a half, quarter or eighth: much less work, and still at least twice the target.
            file.draft(None, (2 * largest, 2 * largest))
            image = _plain(file)
            mode = {None: "L" if _gray(image) else "RGB", 1: "L", 3: "RGB"}[channels]
            image = image.convert(mode)
            return [_pixels(resize_crop(image, size)) for size in image_sizes]
    except _BOMBS:
        raise InvalidInputError(_too_large(name)) from None
    except _UNREADABLE as error:
        raise InvalidInputError(_unreadable(name, error)) from None


def num_pixels(data: bytes, name: str) -> int:
    """How many pixels an image file has, by its header.

    Raises:
        InvalidInputError: not an image, or one that promises more than Pillow ever decodes.
    """
    try:
        with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as file:
            return file.width * file.height
    except _BOMBS:
        raise InvalidInputError(_too_large(name)) from None
    except _UNREADABLE as error:
        raise InvalidInputError(_unreadable(name, error)) from None


def is_gray(path: Path) -> bool:
    """Whether an image file has one channel, by its header.

    Raises:
        InvalidInputError: not an image, or larger than `MAX_IMAGE_PIXELS`.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            _check_pixels(file, str(path))
            return _gray(file)
    except _BOMBS:
        raise InvalidInputError(_too_large(str(path))) from None
    except _UNREADABLE as error:
        raise InvalidInputError(_unreadable(str(path), error)) from None


def stack_images(images: Sequence[Square]) -> UInt8[np.ndarray, "image size size channel"]:
    """Stacks images of one size; gray ones are repeated to three channels where any has colour."""
    if not images:
        return np.empty((0, 1, 1, 1), np.uint8)
    channels = max(image.shape[2] for image in images)
    return np.stack([image if image.shape[2] == channels else image.repeat(3, axis=2) for image in images])


def resize_square(pixels: UInt8[np.ndarray, "height width channel"], image_size: int) -> Square:
    """Resizes the short side of an image to `image_size` pixels and crops the center; the same array where it fits."""
    if pixels.shape[:2] == (image_size, image_size):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return _pixels(resize_crop(image, image_size))


def resize_all(
    images: UInt8[np.ndarray, "image height width channel"], image_size: int
) -> UInt8[np.ndarray, "image size size channel"]:
    """`resize_square` of every image."""
    if images.shape[1:3] == (image_size, image_size):
        return images
    resized = np.empty((len(images), image_size, image_size, images.shape[3]), np.uint8)
    for index, image in enumerate(images):
        resized[index] = resize_square(image, image_size)
    return resized


def resize_crop(image: Image.Image, image_size: int) -> Image.Image:
    """Bilinear with antialiasing; the short side becomes `image_size` pixels, the center of the long one stays."""
    if image.size == (image_size, image_size):
        return image
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    return image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)


def _opened(data: bytes | Path) -> BytesIO | Path:
    return BytesIO(data) if isinstance(data, bytes) else data


def _check_pixels(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise InvalidInputError(_too_large(name))


def _gray(image: Image.Image) -> bool:
    return image.mode in _GRAY_MODES or image.mode.startswith("I")


def _plain(image: Image.Image) -> Image.Image:
    """An image that PIL converts to gray or RGB without a warning and without loss."""
    if image.mode.startswith("I"):  # 16 bits: PIL's own conversion would clip to the lowest 256 levels
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image


def _pixels(image: Image.Image) -> Square:
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_IMAGE_PIXELS} pixels; scale it down or remove it"


def _unreadable(name: str, error: Exception) -> str:
    # PIL repeats a path or the address of a buffer in its message for files of unknown kind.
    reason = "of no known kind" if "cannot identify" in str(error) else str(error)
    return f"{name} is not a readable image ({reason}); repair or remove it"
