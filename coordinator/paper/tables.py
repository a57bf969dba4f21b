"""The paper's tables in words: its figures beside the run's. Pure; for the terminal and for the page."""

from collections.abc import Sequence

from coordinator.paper.anchors import Published
from coordinator.paper.outcome import MetaTraining, Outcome, Row, Table

UNKNOWN = "–"  # noqa: RUF001 - an en dash, as tables have it
NOT_RUN = "not run"

SHORT_HEADER = (
    "architecture",
    "error %\npaper",
    "error % (95 %)\nthis run",
    "M params\npaper",
    "M params\ncounted",
    "GPU-days\npaper",
    "seconds\nthis run",
)
LONG_HEADER = (
    "architecture",
    "paper: top-1 error %",
    "paper: top-5 error %",
    "paper: M params",
    "paper: M MACs",
    "paper: search, GPU-days",
    "this run: top-1 error % (95 % interval)",
    "this run: top-5 error %",
    "at the paper's size, counted: M params",
    "at the paper's size, counted: M MACs",
    "this run: network trained",
    "this run: search, device-seconds",
)


def short_rows(table: Table, meta: MetaTraining | None) -> list[tuple[str, ...]]:
    """Rows for a terminal, under `SHORT_HEADER`; searches as adaptation + meta-training."""
    return [
        (
            name_of(row).replace(" [published genotype ", "\n["),
            _error(row.published, table),
            NOT_RUN if row.trained is None else run_error(row),
            _number(row.published.params_m),
            _params(row),
            _sum(paper_search(row.published)),
            _sum(run_search(row, meta)),
        )
        for row in table.rows
    ]


def long_rows(table: Table, meta: MetaTraining | None) -> list[tuple[str, ...]]:
    """Rows for a page, under `LONG_HEADER`."""
    return [
        (
            name_of(row),
            _error(row.published, table),
            UNKNOWN if row.published.top5_error is None else f"{row.published.top5_error:.1f}",
            _number(row.published.params_m),
            _number(row.published.macs_m),
            paper_search(row.published),
            run_error(row),
            NOT_RUN if row.trained is None else "not measured",
            _params(row),
            UNKNOWN if row.at_paper_size is None else f"{row.at_paper_size.num_macs / 1e6:.0f}",
            _network(row),
            run_search(row, meta),
        )
        for row in table.rows
    ]


def name_of(row: Row) -> str:
    """A row's name; published genotypes that the run trains beside its own are marked."""
    if row.is_released:
        assert row.row is not None
        return f"{row.published.name} [published genotype {row.row.released}]"
    return row.published.name


def run_error(row: Row) -> str:
    """The run's error with its interval, or that there is none."""
    if row.trained is None:
        return row.why_not
    return f"{row.trained.error:.1f} ({row.trained.error_low:.1f} to {row.trained.error_high:.1f})"


def paper_search(published: Published) -> str:
    """The paper's search cost in GPU-days, as it is printed."""
    if published.meta_days is None:
        return _number(published.search_days)
    if published.search_days is None:
        return f"{published.meta_days:g} meta"
    return f"{published.search_days:g} adaptation + {published.meta_days:g} meta"


def run_search(row: Row, meta: MetaTraining | None) -> str:
    """What the search behind a row took in this run, in seconds of one worker's device."""
    if row.is_released:
        return "none: published"
    if row.row is None or row.adapt_s is None or meta is None:
        return NOT_RUN
    if row.row.group == "prior":
        return f"{meta.device_s:.0f} s meta"
    return f"{row.adapt_s:.1f} s adaptation + {meta.device_s:.0f} s meta"


def notes(outcome: Outcome, table: Table) -> Sequence[str]:
    """What a reader must know before comparing."""
    said = []
    if table.is_stand_in:
        said.append(
            f"Images: {table.images} stand in for the paper's. Networks are small and trained briefly, so errors of "
            "this run are not to be compared with the paper's; parameters at the paper's size are."
        )
    else:
        said.append(f"Images: {table.images}, as in the paper; one training per row.")
        if table.name == "imagenet":
            said.append(
                "Test images are 4 % of the prepared folder, not ImageNet's validation set, and the search may have "
                "seen them, the tested networks have not."
            )
    recipe = outcome.config.image_set(table.name).recipe
    said.append(
        f"Each network of this run: {recipe.num_cells} cells, {recipe.channels} channels, {recipe.last_epoch} epochs, "
        "tested with running statistics. Intervals are of the choice of test images, not of seeds."
    )
    missing = [row for row in table.rows if row.row is None]
    said.append(f"{len(missing)} rows are {NOT_RUN}: their architectures are not in this package.")
    said.append(f"{UNKNOWN}: not printed in the paper, or not to be recovered from its text.")
    return said


def _error(published: Published, table: Table) -> str:
    """With as many digits as are printed."""
    if published.error is None:
        return UNKNOWN
    spread = "" if published.error_spread is None else f" ± {published.error_spread:.2f}"
    return f"{published.error:.{1 if table.name == 'imagenet' else 2}f}{spread}"


def _sum(search: str) -> str:
    """A search cost without its words."""
    for word in (" s adaptation", " adaptation", " s meta", " meta", ": published"):
        search = search.replace(word, "")
    return search


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:g}"


def _params(row: Row) -> str:
    return UNKNOWN if row.at_paper_size is None else f"{row.at_paper_size.num_params / 1e6:.2f}"


def _network(row: Row) -> str:
    trained = row.trained
    if trained is None:
        return NOT_RUN
    return (
        f"{trained.cost.num_params:,} params, {trained.cost.num_macs / 1e6:.2f} M MACs; {trained.epochs} epochs on "
        f"{trained.num_train:,} images, {trained.num_test:,} to test on; {trained.train_s:.0f} s"
    )
