"""Batches of labelled images on a device, whether or not all of them fit there."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.data.whole import LabelledImages
from workers.device import resident

# Images that take no more than this stay on the device; of larger sets, batches are read as they are needed.
RESIDENT_BYTES = 2 << 30


class ImageBatches:
    """Labelled images as batches on the device: all of them there, or read batch by batch where they are too many."""

    def __init__(self, images: LabelledImages, device: torch.device) -> None:
        self.num_images = images.num_images
        self._images = images
        self._device = device
        is_small = images.num_bytes <= RESIDENT_BYTES
        self._resident = (
            resident(images.gather(np.arange(images.num_images)), images.labels, device) if is_small else None
        )

    def at(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """uint8 (batch, channels, height, width) and int64 (batch,)."""
        if self._resident is not None:
            chosen = torch.from_numpy(indices).to(self._device)
            return self._resident.images[chosen], self._resident.labels[chosen]
        batch = resident(self._images.gather(indices), self._images.labels[indices], self._device)
        return batch.images, batch.labels
