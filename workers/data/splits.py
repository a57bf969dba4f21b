"""Which classes meta-training may see, and which are kept for tasks never seen before."""

from common.config import Split
from common.streams import stream
from workers.data.arrays import ClassArrays


def classes_of(arrays: ClassArrays, split: Split, unseen_fraction: float, split_seed: int) -> tuple[int, ...]:
    """Indices of the classes of a split, ascending.

    Whole groups are kept out, so that unseen classes are of scripts never seen; where groups are the classes
    themselves, single classes.

    Args:
        arrays: the source.
        split: `meta_train` and `unseen` are disjoint and together `all`.
        unseen_fraction: share of the groups that are unseen, 0 to 1. At least one group is unseen above 0, and at
            least one is left to meta-training below 1, where there are two groups.
        split_seed: chooses which ones.
    """
    groups = sorted(set(arrays.groups))
    num_unseen = round(unseen_fraction * len(groups))
    if len(groups) >= 2:
        least = 1 if unseen_fraction > 0 else 0
        most = len(groups) - 1 if unseen_fraction < 1 else len(groups)
        num_unseen = min(max(num_unseen, least), most)
    order = stream(split_seed, "unseen groups").permutation(len(groups))
    unseen = {groups[position] for position in order[:num_unseen]}
    return tuple(
        index for index, group in enumerate(arrays.groups) if split == "all" or (group in unseen) == (split == "unseen")
    )
