"""Which classes meta-training may see, which are for choosing between priors, and which for tasks never seen."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping

from common.config import DatasetRef, Split
from common.errors import InvalidInputError
from common.streams import stream
from workers.data.arrays import ClassArrays, Part

PARTS: tuple[Part, ...] = ("meta_train", "validation", "unseen")

_MINI_IMAGENET: Mapping[Part, int] = {"meta_train": 64, "validation": 16, "unseen": 20}
_PAPER_MOVES = 4  # validation classes that are unseen ones in BASE section 6.3
_OMNIGLOT_UNSEEN, _OMNIGLOT_VALIDATION, _OMNIGLOT_CHARACTERS = 423, 100, 1623


def classes_of(arrays: ClassArrays, split: Split, data: DatasetRef) -> tuple[int, ...]:
    """Indices of the classes of a split, ascending.

    By fractions whole groups are kept out, so that unseen classes are of scripts never seen; where groups are the
    classes themselves, single classes.

    Args:
        arrays: the source.
        split: the parts are disjoint and together `all`.
        data: how it is split: `class_split`, and what chooses.

    Raises:
        InvalidInputError: the source is not of the classes that the split is of.
    """
    if split == "all":
        return tuple(range(arrays.num_classes))
    return tuple(index for index, part in enumerate(parts_of(arrays, data)) if part == split)


def parts_of(arrays: ClassArrays, data: DatasetRef) -> tuple[Part, ...]:
    """The part that each class of a source is in; see `classes_of`."""
    if data.class_split == "fraction":
        return _by_fraction(arrays, data)
    if data.class_split == "characters":
        return _by_character(arrays, data)
    published = tuple(record.part for record in arrays.records)
    known = tuple(part for part in published if part is not None)
    if len(known) < len(published):
        name = arrays.class_names[published.index(None)]
        raise InvalidInputError(
            f"class {name!r} of {data.source!r} is in no published part; set data.class_split to 'fraction'"
        )
    return known if data.class_split == "published" else _as_in_the_paper(arrays, known)


def split_counts(arrays: ClassArrays, data: DatasetRef) -> dict[Part, int]:
    """How many classes each part has."""
    counts = Counter(parts_of(arrays, data))
    return {part: counts[part] for part in PARTS}


def split_digest(arrays: ClassArrays, data: DatasetRef) -> str:
    """SHA-256 in hexadecimal of the names of the classes of each part: equal splits have equal digests, whatever the
    order in which a source lists its classes."""
    parts = parts_of(arrays, data)
    names = {
        part: sorted(name for name, where in zip(arrays.class_names, parts, strict=True) if where == part)
        for part in PARTS
    }
    return hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()


def _by_fraction(arrays: ClassArrays, data: DatasetRef) -> tuple[Part, ...]:
    """At least one group is unseen above a fraction of 0, and at least one is left to meta-training below 1, where
    there are two groups; so with validation, of what is left."""
    groups = sorted(set(arrays.groups))
    num_unseen = _share(data.unseen_fraction, len(groups), len(groups))
    num_left = len(groups) - num_unseen
    num_validation = _share(data.validation_fraction, len(groups), num_left) if data.validation_fraction else 0
    order = [groups[position] for position in stream(data.split_seed, "unseen groups").permutation(len(groups))]
    unseen, validation = set(order[:num_unseen]), set(order[num_unseen : num_unseen + num_validation])
    return tuple(
        "unseen" if group in unseen else "validation" if group in validation else "meta_train"
        for group in arrays.groups
    )


def _share(fraction: float, num_groups: int, num_left: int) -> int:
    """So many of the groups, out of those that are left."""
    wanted = round(fraction * num_groups)
    if num_left < 2:
        return min(wanted, num_left)
    least = 1 if fraction > 0 else 0
    most = num_left - 1 if fraction < 1 else num_left
    return min(max(wanted, least), most)


def _as_in_the_paper(arrays: ClassArrays, published: tuple[Part, ...]) -> tuple[Part, ...]:
    counts = Counter(published)
    if counts != _MINI_IMAGENET:
        found = " / ".join(str(counts[part]) for part in PARTS)
        raise InvalidInputError(
            f"the paper's split is of Mini-ImageNet's 64 / 16 / 20 classes, here are {found}; complete the files, or "
            "set data.class_split to 'published'"
        )
    validation = sorted(name for name, part in zip(arrays.class_names, published, strict=True) if part == "validation")
    moved = set(validation[-_PAPER_MOVES:])
    return tuple("unseen" if name in moved else part for name, part in zip(arrays.class_names, published, strict=True))


def _by_character(arrays: ClassArrays, data: DatasetRef) -> tuple[Part, ...]:
    if arrays.num_classes != _OMNIGLOT_CHARACTERS:
        raise InvalidInputError(
            f"data.class_split 'characters' is of Omniglot's {_OMNIGLOT_CHARACTERS} characters, here are "
            f"{arrays.num_classes}; complete the files, or set data.class_split to 'published'"
        )
    order = stream(data.split_seed, "characters").permutation(arrays.num_classes)
    names = [sorted(arrays.class_names)[position] for position in order]
    unseen = set(names[:_OMNIGLOT_UNSEEN])
    validation = set(names[_OMNIGLOT_UNSEEN : _OMNIGLOT_UNSEEN + _OMNIGLOT_VALIDATION])
    return tuple(
        "unseen" if name in unseen else "validation" if name in validation else "meta_train"
        for name in arrays.class_names
    )
