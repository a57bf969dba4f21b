"""What a network does with images that it has not learnt from, with an interval. No torch."""

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Score:
    """What a network does with images that it has not learnt from.

    Attributes:
        num_correct: images whose class has the highest logit.
        num_images: images in all.
        loss_nats: mean cross-entropy.
    """

    num_correct: int
    num_images: int
    loss_nats: float

    @property
    def accuracy(self) -> float:
        """Share of the images that are right, 0 to 1."""
        return self.num_correct / self.num_images

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """See `wilson_interval`."""
        return wilson_interval(self.num_correct, self.num_images, confidence)


def wilson_interval(num_correct: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: limits from 0 to 1 that also hold near 0 and 1.

    It covers the choice of test images, not that of seeds: another training of the same network may lie outside.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = num_correct / num_images
    center = (share + z * z / (2 * num_images)) / (1 + z * z / num_images)
    half = z / (1 + z * z / num_images) * math.sqrt(share * (1 - share) / num_images + (z / (2 * num_images)) ** 2)
    return max(center - half, 0.0), min(center + half, 1.0)
