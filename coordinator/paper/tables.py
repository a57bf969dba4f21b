"""The paper's tables in words: its figures beside the run's. Pure; for the terminal and for the page."""

from collections.abc import Sequence

from coordinator.paper.anchors import Published
from coordinator.paper.outcome import Outcome, Row, Table
from coordinator.paper.studies import MetaTraining

UNKNOWN = "–"  # noqa: RUF001 - an en dash, as tables have it
NOT_RUN = "not run"

SHORT_HEADER = (
    "architecture",
    "error %\npaper",
    "error %\nthis run",
    "M params\npaper, ours",
    "GPU-days\npaper",
    "seconds\nthis run",
)


def short_rows(table: Table, meta: MetaTraining | None) -> list[tuple[str, ...]]:
    """Rows for a terminal, under `SHORT_HEADER`; searches as adaptation + meta-training, parameters at full size."""
    return [
        (
            name_of(row).replace(" [published genotype ", " ["),
            _error(row.published, table),
            run_error(row).replace(" to ", "-"),
            f"{_number(row.published.params_m)}, {_params(row)}",
            _sum(paper_search(row.published)),
            _sum(run_search(row, meta)),
        )
        for row in table.rows
    ]


def long_table(table: Table, meta: MetaTraining | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows for a page; top-5 errors and published MACs where the paper's table has them."""
    columns: list[tuple[str, list[str]]] = [
        ("architecture", [name_of(row) for row in table.rows]),
        ("top-1 error %, paper", [_error(row.published, table) for row in table.rows]),
        ("top-1 error %, this run (95 % interval)", [run_error(row) for row in table.rows]),
    ]
    if any(row.published.top5_error is not None for row in table.rows):
        columns += [
            ("top-5 error %, paper", [_top5(row.published) for row in table.rows]),
            ("top-5 error %, this run", [NOT_RUN if row.trained is None else "not measured" for row in table.rows]),
        ]
    columns += [
        ("M params, paper", [_number(row.published.params_m) for row in table.rows]),
        ("M params at the paper's size, counted", [_params(row) for row in table.rows]),
    ]
    if any(row.published.macs_m is not None for row in table.rows):
        columns.append(("M MACs, paper", [_number(row.published.macs_m) for row in table.rows]))
    columns += [
        ("M MACs at the paper's size, counted", [_macs(row) for row in table.rows]),
        ("search, paper, GPU-days", [paper_search(row.published) for row in table.rows]),
        ("search, this run", [run_search(row, meta) for row in table.rows]),
        ("network trained in this run", [_network(row) for row in table.rows]),
    ]
    header = tuple(name for name, _ in columns)
    return header, list(zip(*(values for _, values in columns), strict=True))


def name_of(row: Row) -> str:
    """A row's name; published genotypes that the run trains beside its own are marked."""
    if row.is_released:
        assert row.row is not None
        return f"{row.published.name} [published genotype {row.row.released}]"
    return row.published.name


def run_error(row: Row) -> str:
    """The run's error with its interval, or that there is none."""
    if row.trained is None:
        return NOT_RUN
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
    trained = next((row.trained for row in table.rows if row.trained is not None), None)
    images = "" if trained is None else f" on {trained.num_train:,} images, tested on {trained.num_test:,} others"
    said.append(
        f"Each network of this run: {recipe.num_cells} cells, {recipe.channels} channels, {recipe.last_epoch} "
        f"epochs{images}, BatchNorm by its running statistics. Intervals are of the choice of test images, not of "
        "seeds."
    )
    said.append("What a search took in this run is in seconds of one worker's device.")
    missing = sum(row.row is None for row in table.rows)
    said.append(f"{missing} rows are {NOT_RUN}, as their architectures are not in this package.")
    waiting = {row.why_not for row in table.rows if row.row is not None and row.trained is None}
    said += sorted(f"The others that are {NOT_RUN}: {reason.removeprefix('not run yet: ')}." for reason in waiting)
    said.append(f"{UNKNOWN}: not printed in the paper, or not to be recovered from its text.")
    return said


def _error(published: Published, table: Table) -> str:
    """With as many digits as are printed."""
    if published.error is None:
        return UNKNOWN
    spread = "" if published.error_spread is None else f" ± {published.error_spread:.2f}"
    return f"{published.error:.{1 if table.name == 'imagenet' else 2}f}{spread}"


def _top5(published: Published) -> str:
    return UNKNOWN if published.top5_error is None else f"{published.top5_error:.1f}"


def _macs(row: Row) -> str:
    return UNKNOWN if row.at_paper_size is None else f"{row.at_paper_size.num_macs / 1e6:.0f}"


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
    return f"{trained.cost.num_params:,} params, {trained.cost.num_macs / 1e6:.2f} M MACs, {trained.train_s:.0f} s"
