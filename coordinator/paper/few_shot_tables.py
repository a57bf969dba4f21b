"""Table 4 in words: the paper's figures beside the run's. Pure; for the terminal and for the page."""

from collections.abc import Mapping, Sequence

from common.cost import Cost
from common.few_shot_config import MetaGradientMethod
from coordinator.meta_test import PATHS, STATISTICS
from coordinator.paper.few_shot import VARIANTS, few_shot_of
from coordinator.paper.few_shot_outcome import FewShotOutcome, FewShotRowOutcome
from coordinator.paper.tables import NOT_RUN, UNKNOWN

SHORT_HEADER = (
    "architecture",
    "accuracy %\npaper",
    "accuracy %\nthis run",
    "M params\npaper, ours",
    "seconds\nthis run",
)

_LONG_HEADER = (
    "architecture",
    "accuracy %, paper",
    "accuracy %, this run (95 % interval)",
    "M params, paper",
    "M params at full scale, counted",
    "M MACs at full scale, counted",
    "meta-trained by: paper",
    "meta-trained by: this run",
    "search, this run",
    "meta-training, this run",
    "network trained in this run",
    "computed by",
)

ORDERS: Mapping[MetaGradientMethod, str] = {
    "exact": "second order (exact)",
    "finite_difference": "second order (finite differences)",
    "first_order": "first order",
    "reptile": "Reptile",
}
"""What meta-gradients are, by the way to compute them."""


def short_rows(found: FewShotOutcome) -> list[tuple[str, ...]]:
    """Rows for a terminal, under `SHORT_HEADER`; seconds are of search + meta-training, of one worker's device."""
    return [
        (
            name_of(row).replace(" [published genotype ", " ["),
            _paper_accuracy(row),
            _run_accuracy(row).replace(" to ", "-"),
            f"{_paper_params(row)}, {_millions(row.at_paper_size, 'num_params', 2)}",
            _seconds(row),
        )
        for row in found.rows
    ]


def long_table(found: FewShotOutcome) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows for a page."""
    return _LONG_HEADER, [
        (
            name_of(row),
            _paper_accuracy(row),
            _run_accuracy(row),
            _paper_params(row),
            _millions(row.at_paper_size, "num_params", 2),
            _millions(row.at_paper_size, "num_macs", 0),
            row.published.algorithm,
            _algorithm(found, row),
            _search(row),
            NOT_RUN if row.tested is None else f"{row.tested.training_s:.0f} s",
            _network(row),
            NOT_RUN if row.tested is None else _paths(row),
        )
        for row in found.rows
    ]


def notes(found: FewShotOutcome) -> Sequence[str]:
    """What a reader must know before comparing."""
    table, family = found.config, found.config.family
    few_shot, searched = few_shot_of(table, found.rows[0].row), table.search.few_shot
    assert searched is not None, "a few-shot study"
    said = []
    if found.is_stand_in:
        said.append(
            f"Images: {found.images} stand in for the paper's {table.name}. Networks are small and trained briefly, so "
            "accuracies of this run are not to be compared with the paper's; parameters at full scale are."
        )
    else:
        said.append(f"Images: {found.images} at {family.image_size} pixels, as in the paper.")
    if found.num_classes:
        counts = " / ".join(f"{count}" for count in found.num_classes.values())
        said.append(
            f"Classes for meta-training / validation / test: {counts} (the paper: 64 / 12 / 24); SHA-256 of the split "
            f"{found.split_sha256[:16]}."
        )
    times = "once" if table.repeats == 1 else f"{table.repeats} times, with other seeds,"
    said.append(
        f"Every network of this run is meta-trained {times} from fresh weights for {table.rounds:,} rounds of "
        f"{family.tasks_per_round} episodes: {family.num_ways} classes of {family.train_per_class} support and "
        f"{family.test_per_class} query images. BASE searches for {table.search.rounds:,} such rounds before that, by "
        f"meta-gradients of {ORDERS[searched.method]}. The paper's numbers of rounds and steps are lost; "
        "it ran search and training twice."
    )
    said.append(
        f"Accuracy after {few_shot.test_steps} inner steps, on {table.episodes} episodes of unseen classes, the same "
        f"for all rows; {few_shot.evaluation}: {STATISTICS[few_shot.evaluation]}. The paper does not say which "
        "of the two its figures are. Intervals of this run are Student's t over episodes, 95 %, and say nothing of "
        "other seeds."
    )
    said.append(
        "Seconds are of one worker's device. Full scale is of this program's layout, as the paper's is lost; 7x1 "
        "convolutions, which the published genotypes lack, weigh most there."
    )
    for row in found.rows:
        paper = row.published
        if paper.source:
            said.append(f"{paper.name}: the paper's {_paper_accuracy(row)} is {paper.source}.")
        if paper.note:
            said.append(f"{paper.name}: {_paper_accuracy(row)} is {paper.note}.")
    if table.repeats > 1:
        each = (f"{name_of(row)} {_by_repeat(row)}" for row in found.rows if row.tested is not None)
        said.append(f"By seed: {'; '.join(each)}.")
    waiting = {row.why_not.removeprefix("not run yet: ") for row in found.rows if row.tested is None}
    said += [f"What is {NOT_RUN}: {command}." for command in sorted(waiting)]
    said.append(f"{UNKNOWN}: not to be recovered from the paper's text.")
    return said


def name_of(row: FewShotRowOutcome) -> str:
    """A row's name; a published genotype is marked."""
    released = row.row.released
    return row.published.name if released is None else f"{row.published.name} [published genotype {released}]"


def _paper_accuracy(row: FewShotRowOutcome) -> str:
    """With as many digits as are printed."""
    paper = row.published
    if paper.accuracy is None:
        return UNKNOWN
    return f"{paper.accuracy:.{paper.decimals}f} ± {paper.spread:.{paper.decimals}f}"


def _run_accuracy(row: FewShotRowOutcome) -> str:
    tested = row.tested
    return NOT_RUN if tested is None else f"{tested.accuracy:.1f} ({tested.low:.1f} to {tested.high:.1f})"


def _by_repeat(row: FewShotRowOutcome) -> str:
    assert row.tested is not None
    return ", ".join(f"{value:.1f}" for value in row.tested.by_repeat)


def _paper_params(row: FewShotRowOutcome) -> str:
    return UNKNOWN if row.published.params_m is None else f"{row.published.params_m:g}"


def _millions(costs: Sequence[Cost], field: str, digits: int) -> str:
    values = dict.fromkeys(f"{getattr(cost, field) / 1e6:.{digits}f}" for cost in costs)
    return " / ".join(values) or UNKNOWN


def _algorithm(found: FewShotOutcome, row: FewShotRowOutcome) -> str:
    method = few_shot_of(found.config, row.row).method
    return ORDERS[method] if method == "reptile" else f"MAML, {ORDERS[method]}"


def _search(row: FewShotRowOutcome) -> str:
    if row.row.variant is None:
        return "none: published" if row.row.released is not None else "none"
    if row.tested is None or row.tested.search_s is None:
        return NOT_RUN
    return f"{row.tested.search_s:.0f} s, {VARIANTS[row.row.variant]}"


def _seconds(row: FewShotRowOutcome) -> str:
    tested = row.tested
    if tested is None:
        return NOT_RUN
    search = "" if tested.search_s is None else f"{tested.search_s:.0f} + "
    return f"{search}{tested.training_s:.0f}"


def _network(row: FewShotRowOutcome) -> str:
    if row.tested is None:
        return NOT_RUN
    params = " / ".join(f"{cost.num_params:,}" for cost in row.tested.costs)
    macs = _millions(row.tested.costs, "num_macs", 2)
    return f"{params} params, {macs} M MACs"


def _paths(row: FewShotRowOutcome) -> str:
    assert row.tested is not None
    return " and ".join(PATHS[path] for path in row.tested.paths)
