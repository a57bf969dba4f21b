"""What the paper reports, as values: tables 1 to 4. Pure.

Errors, accuracies and sizes are as printed; None where the figure could not be recovered from the paper's text, or
where the paper prints none. Search times are GPU-days of whatever GPU the authors of a row used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

TableName = Literal["cifar10", "svhn", "imagenet"]

SOURCE = "Shaw et al., Meta Architecture Search, NeurIPS 2019 (arXiv 1812.09584)"

PRIOR_ROW = "BASE (Multi-task Prior)"
IMAGENET32_ROW = "BASE (Imagenet32 Tuned)"
CIFAR10_ROW = "BASE (CIFAR10 Tuned)"
SVHN_ROW = "BASE (SVHN Tuned)"
IMAGENET_ROW = "BASE (Imagenet Tuned)"
DARTS_FIRST_ROW = "DARTS (1st order bi-level) + cutout"
DARTS_SECOND_ROW = "DARTS (2nd order bi-level) + cutout"
DARTS_SVHN_ROW = "DARTS (CIFAR10 Searched)"
DARTS_IMAGENET_ROW = "DARTS"

MAML_ROW = "MAML"
REPTILE_ROW = "REPTILE"
DARTS_FEW_SHOT_ROW = "DARTS Architecture"
SOFTMAX_ROW = "BASE (Softmax)"
GUMBEL_ROW = "BASE (Gumbel)"

META_DAYS = 8.0  # GPU-days of the meta-training, on a GTX 1080 Ti (sec. 5.2)
META_EPOCHS, META_TASKS = 130, 24


@dataclass(frozen=True)
class Published:
    """A row of one of the paper's tables.

    Attributes:
        name: as printed.
        error: top-1 test error in percent.
        error_spread: what is printed after a "±".
        top5_error: in percent.
        params_m: millions of parameters.
        macs_m: millions of multiply-accumulates, by the paper's count.
        search_days: GPU-days of the search; for BASE, of the adaptation alone.
        meta_days: GPU-days of the meta-training that the adaptation starts from.
    """

    name: str
    error: float | None = None
    error_spread: float | None = None
    top5_error: float | None = None
    params_m: float | None = None
    macs_m: float | None = None
    search_days: float | None = None
    meta_days: float | None = None

    @property
    def total_days(self) -> float | None:
        """GPU-days of everything before the final training."""
        if self.search_days is None and self.meta_days is None:
            return None
        return (self.search_days or 0.0) + (self.meta_days or 0.0)


TITLES: Mapping[TableName, str] = MappingProxyType(
    {
        "cifar10": "Table 1: CIFAR10",
        "svhn": "Table 2: SVHN",
        "imagenet": "Table 3: ImageNet, mobile setting",
    }
)

PUBLISHED: Mapping[TableName, tuple[Published, ...]] = MappingProxyType(
    {
        "cifar10": (
            Published("NASNet-A + cutout", error=2.65, params_m=3.3, search_days=1800),
            Published("AmoebaNet-A + cutout", params_m=3.2, search_days=3150),
            Published("AmoebaNet-B + cutout", params_m=2.8, search_days=3150),
            Published("Hierarchical Evo", params_m=15.7, search_days=300),
            Published("PNAS", params_m=3.2, search_days=225),
            Published(DARTS_FIRST_ROW, params_m=3.3, search_days=1.5),
            Published(DARTS_SECOND_ROW, params_m=3.3, search_days=4),
            Published("SNAS (single-level) + cutout", params_m=2.8, search_days=1.5),
            Published("SMASH", error=4.03, params_m=16, search_days=1.5),
            Published("ENAS + cutout", error=2.89, params_m=4.6, search_days=0.5),
            Published(PRIOR_ROW, params_m=3.2, meta_days=META_DAYS),
            Published(IMAGENET32_ROW, params_m=3.3, search_days=0.04, meta_days=META_DAYS),
            Published(CIFAR10_ROW, error=2.83, params_m=3.1, search_days=0.05, meta_days=META_DAYS),
        ),
        "svhn": (
            Published("WideResnet", error=1.30, error_spread=0.03, params_m=11.7),
            Published("MetaQNN", error=2.24, params_m=9.8, search_days=100),
            Published(DARTS_SVHN_ROW, error=2.09, params_m=3.3, search_days=4),
            Published(PRIOR_ROW, error=2.13, params_m=3.2, meta_days=META_DAYS),
            Published(IMAGENET32_ROW, error=2.07, params_m=3.3, search_days=0.04, meta_days=META_DAYS),
            Published(SVHN_ROW, error=2.01, params_m=3.2, search_days=0.04, meta_days=META_DAYS),
        ),
        "imagenet": (
            Published("NASNet-A", 26.0, None, 8.4, 5.3, 564, 1800),
            Published("NASNet-B", 27.2, None, 8.7, 5.3, 488, 1800),
            Published("NASNet-C", 27.5, None, 9.0, 4.9, 558, 1800),
            Published("AmoebaNet-A", 25.5, None, 8.0, 5.1, 555, 3150),
            Published("AmoebaNet-B", 26.0, None, 8.5, 5.3, 555, 3150),
            Published("AmoebaNet-C", 24.3, None, 7.6, 6.4, 570, 3150),
            Published("PNAS", 25.8, None, 8.1, 5.1, 588, 225),
            Published(DARTS_IMAGENET_ROW, 26.9, None, 9.0, 4.9, 595, 4),
            Published("SNAS", 27.3, None, 9.2, 4.3, 522, 1.5),
            Published(PRIOR_ROW, params_m=4.6, macs_m=544, meta_days=META_DAYS),
            Published(IMAGENET_ROW, 25.7, None, 8.1, 4.9, 559, 0.04, META_DAYS),
        ),
    }
)
"""Rows in the paper's order, by table."""


def published(table: TableName, name: str) -> Published:
    """The row of a table that goes by a name; it is there."""
    return next(row for row in PUBLISHED[table] if row.name == name)


@dataclass(frozen=True)
class PublishedFewShot:
    """A row of table 4.

    Attributes:
        name: as printed.
        accuracy: on test episodes, in percent.
        spread: what is printed after a "±".
        params_m: millions of parameters.
        algorithm: that meta-trains the network.
        decimals: of accuracy and spread, as printed.
        source: of the accuracy, where it is not the paper's text.
        note: what a reader must know before comparing with it.
    """

    name: str
    accuracy: float | None = None
    spread: float | None = None
    params_m: float | None = None
    algorithm: str = "MAML"
    decimals: int = 2
    source: str = ""
    note: str = ""


FEW_SHOT_TITLE = "Table 4: few-shot learning, 5-way 5-shot on Mini-ImageNet"

PUBLISHED_FEW_SHOT: tuple[PublishedFewShot, ...] = (
    PublishedFewShot(MAML_ROW, 63.11, 0.92, 0.1),
    PublishedFewShot(REPTILE_ROW, 65.99, 0.58, 0.1, "REPTILE", note="Reptile's transductive figure"),
    PublishedFewShot(DARTS_FEW_SHOT_ROW, params_m=1.6),
    PublishedFewShot(
        SOFTMAX_ROW, 65.40, 0.74, 1.2, source="repeated in table 3 of the submission of T-NAS; lost in the paper's text"
    ),
    PublishedFewShot(GUMBEL_ROW, 66.2, 0.7, 1.2, decimals=1),
)
"""Rows in the paper's order."""
