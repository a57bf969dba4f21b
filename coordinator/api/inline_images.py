"""Images that travel in a request: what may be sent, read from files, and scaled where it would not fit.

Nothing heavier than Pillow is imported, and that only once there are images to read.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import InvalidInputError, NotFoundError, UnavailableError
from coordinator.api.stubs import search_pb2 as pb

MAX_BYTES = 3 << 20
"""Of all images of a request, as files; a message has at most 4 MiB."""
MAX_PIXELS, MAX_TOTAL_PIXELS = 1 << 24, 1 << 26
"""Of one image and of all of them, as they arrive: a small file may hold a large image."""

Support = str | Path | Mapping[str, Sequence[str | Path | bytes]]
"""Labelled images: an image folder, a zip or tar file of one; or files, or their contents, by class."""
Queries = str | Path | Sequence[str | Path | bytes]
"""Images to be labelled: a folder, a file; or several files, or their contents."""


def support_images(support: Support) -> list[pb.FewShotImage]:
    """Labelled images for a request.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidInputError: it holds no image classes.
    """
    if isinstance(support, str | Path):
        path = Path(support).expanduser()
        return list(_archived(path) if path.is_file() else _in_folders(path))
    return [
        pb.FewShotImage(name=name, label=label, content=content)
        for label, files in support.items()
        for name, content in _named(files)
    ]


def query_images(queries: Queries) -> list[pb.FewShotImage]:
    """Images to be labelled, for a request.

    Raises:
        NotFoundError: there is no such file or folder.
        InvalidInputError: a folder has no images.
    """
    if not isinstance(queries, str | Path):
        return [pb.FewShotImage(name=name, content=content) for name, content in _named(queries)]
    path = Path(queries).expanduser()
    if not path.is_dir():
        return [pb.FewShotImage(name=path.name, content=_read(path))]
    from workers.data.folders import image_files

    files = sorted(image_files(path))
    if not files:
        raise InvalidInputError(f"{path} has no images; queries are image files, at any depth")
    return [pb.FewShotImage(name=file.relative_to(path).as_posix(), content=_read(file)) for file in files]


def fits(images: Sequence[pb.FewShotImage]) -> bool:
    """Whether a request takes the images as they are.

    Raises:
        InvalidInputError: one is no readable image.
    """
    from workers.data.images import num_pixels

    pixels = [num_pixels(image.content, image.name) for image in images]
    small = max(pixels, default=0) <= MAX_PIXELS and sum(pixels) <= MAX_TOTAL_PIXELS
    return small and sum(len(image.content) for image in images) <= MAX_BYTES


def scaled(images: Sequence[pb.FewShotImage], image_size: int) -> list[pb.FewShotImage]:
    """The same as PNG files of the squares that the service would make of them: it computes with the same pixels.

    Raises:
        InvalidInputError: one is no readable image, or they still do not fit into a request.
    """
    from PIL import Image

    from workers.data.images import decode_squares

    found = []
    for image in images:
        square = decode_squares(image.content, image.name, (image_size,))[0]
        buffer = io.BytesIO()
        Image.fromarray(square[:, :, 0] if square.shape[2] == 1 else square).save(buffer, "PNG")
        found.append(pb.FewShotImage(name=image.name, label=image.label, content=buffer.getvalue()))
    num_bytes = sum(len(image.content) for image in found)
    if num_bytes > MAX_BYTES:
        raise InvalidInputError(
            f"{len(images)} images of {image_size} pixels have {num_bytes} bytes, at most {MAX_BYTES} go with a "
            "request; send fewer queries at a time"
        )
    return found


def _in_folders(folder: Path) -> Iterator[pb.FewShotImage]:
    from workers.data.folders import files_by_class

    for label, files in files_by_class(folder).items():
        for file in files:
            yield pb.FewShotImage(name=file.relative_to(folder).as_posix(), label=label, content=_read(file))


def _archived(path: Path) -> Iterator[pb.FewShotImage]:
    from workers.data.archives import archived_images
    from workers.data.sources import FILE_SUFFIXES

    if not path.name.lower().endswith(FILE_SUFFIXES) or path.name.lower().endswith(".npz"):
        raise InvalidInputError(f"{path} is neither an image folder nor a zip or tar file of one; support images are")
    for label, name, content in archived_images(path):
        yield pb.FewShotImage(name=name, label=label, content=content)


def _named(files: Sequence[str | Path | bytes]) -> Iterator[tuple[str, bytes]]:
    """Contents are named by their place."""
    for index, file in enumerate(files):
        if isinstance(file, bytes):
            yield str(index), file
        else:
            yield str(file), _read(Path(file).expanduser())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error}") from None
