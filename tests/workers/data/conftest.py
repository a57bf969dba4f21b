"""What the tests of the data package share: a cache of their own, and small images to build sources from."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Writer = Callable[[Path, Mapping[str, int]], Path]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("METASEARCH_CACHE", str(folder))
    return folder


@pytest.fixture
def write_images() -> Writer:
    """Writes a PNG folder of so many images per class; each image has its own even colour."""

    def write(folder: Path, counts: Mapping[str, int]) -> Path:
        for class_index, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True)
            for index in range(count):
                color = (10 * class_index + 5, index, 200)
                Image.fromarray(np.full((12, 10, 3), color, np.uint8)).save(folder / name / f"{index:03d}.png")
        return folder

    return write
