"""Which images, and which of their classes meta-training may see. No torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from common.values import Fraction, Frozen

Split = Literal["meta_train", "validation", "unseen", "all"]
ClassSplit = Literal["fraction", "published", "paper", "characters"]

MINI_IMAGENET, OMNIGLOT = "mini_imagenet", "omniglot"

SOURCES_SPLIT_BY: Mapping[ClassSplit, tuple[str, ...]] = MappingProxyType(
    {"published": (MINI_IMAGENET, OMNIGLOT), "paper": (MINI_IMAGENET,), "characters": (OMNIGLOT,)}
)
"""Which sources can be split so; `fraction` splits any."""


class DatasetRef(Frozen):
    """Which images."""

    source: str = Field("glyphs", min_length=1)
    """A source by name (`metasearch data list`), or the path of an image folder, zip, tar or npz file."""
    root: str | None = None
    """Folder that holds or receives the source's files; a node-local cache where not given."""
    class_split: ClassSplit = "fraction"
    """How classes are split; where not given, published for mini_imagenet. fraction: by the fractions below. published:
    as the source's publishers have it: Mini-ImageNet's 64 / 16 / 20 classes (Ravi and Larochelle 2017), Omniglot's
    background and evaluation alphabets. paper: the 64 / 12 / 24 classes of Mini-ImageNet that BASE section 6.3 prints.
    It does not say which, so the last four validation classes by name become unseen ones (reconstruction). characters:
    1,100 / 100 / 423 of Omniglot's characters, whatever their alphabets, drawn by `split_seed` (the usual 1,200 / 423,
    with 100 of the 1,200 for validation)."""
    unseen_fraction: Fraction = 0.25
    """Share of the classes (of the groups of classes, where the source has groups) kept out of meta-training."""
    validation_fraction: Fraction = 0.0
    """A further share of them, for choosing between priors."""
    split_seed: int = 0
    """Chooses which ones."""

    @model_validator(mode="before")
    @classmethod
    def _published_by_default(cls, values: Any) -> Any:
        # Resolved here, so that a stored configuration says which split it was.
        if isinstance(values, dict) and values.get("source") == MINI_IMAGENET:
            return {"class_split": "published"} | values
        return values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sources = SOURCES_SPLIT_BY.get(self.class_split)
        if sources is not None and self.source not in sources:
            raise ValueError(
                f"class_split {self.class_split!r} is of {' and '.join(sources)}, source is {self.source!r}; "
                "set class_split to 'fraction'"
            )
        if self.unseen_fraction + self.validation_fraction > 1:
            raise ValueError(
                f"unseen_fraction {self.unseen_fraction:g} and validation_fraction {self.validation_fraction:g} are "
                "more than all classes; lower one"
            )
        return self
