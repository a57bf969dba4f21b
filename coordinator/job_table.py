"""The service's jobs as a table for a terminal. Pure: values in, something that rich prints out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BEAT_LATE_S = 10.0
"""A coordinator that gives no sign of life for so long is said to be gone."""
SILENT_S = 1.5
"""For so long nobody is told that the service does not answer."""
_NUM_ENDED = 5  # of the jobs that have ended, shown however many others there are
_OTHER_LINES = 6  # than jobs: two above, column heads, two below, and the last, which a terminal would scroll away

# A letter and a word for each state; colours, which tell no state from another by themselves, are apart for all eyes.
_STATES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "running": ("●", "bold cyan"),
        "cancelling": ("◐", "yellow"),
        "queued": ("○", ""),
        "paused": ("=", "yellow"),
        "succeeded": ("✓", "blue"),
        "failed": ("✗", "bold magenta"),
        "cancelled": ("-", "dim"),
    }
)
_IS_OVER = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True)
class JobRow:
    """A job, as the table shows it.

    Attributes:
        name: studies/{study}/jobs/{job}.
        kind: adapt, meta_train, evaluate, sweep or few_shot.
        state: see `_STATES`.
        done: steps, versions, epochs or trials so far.
        total: of these; 0 where it is not known.
        eta_s: seconds that are left, where they can be told.
        accuracy: the best so far, 0 to 1, where there is one.
        attempt: times that it was started.
        age_s: since it was submitted; of one that has ended, since then.
        worker: that it runs on, where that is one.
        note: what happened last, or why it failed.
    """

    name: str
    kind: str
    state: str
    done: int
    total: int
    eta_s: float | None
    accuracy: float | None
    attempt: int
    age_s: float
    worker: str
    note: str

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in _IS_OVER


@dataclass(frozen=True)
class ServiceView:
    """The service as one tenant sees it, and how well it is seen.

    Attributes:
        address: of the service.
        is_known: whether it has answered at all; else the rest means nothing.
        jobs_running: of the tenant, in all studies.
        jobs_queued: the same.
        epoch: of the coordinator, 0 before the first.
        workers: that run.
        beat_age_s: seconds since the coordinator was seen to live.
        rows: jobs, in the order of the table.
        silent_s: seconds since the service answered.
        problem: why it does not, in words.
    """

    address: str
    is_known: bool = True
    jobs_running: int = 0
    jobs_queued: int = 0
    epoch: int = 0
    workers: int = 0
    beat_age_s: float = 0.0
    rows: Sequence[JobRow] = ()
    silent_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class _Column:
    """A column: from which width of the terminal on it is shown, and how wide it is; None for what it takes."""

    title: str
    cell: Callable[[JobRow, int], RenderableType]
    from_width: int = 0
    width: int | None = None
    wide: int | None = None  # in place of `width`, on wide terminals
    is_number: bool = False


_WIDE = 144
_MAX_FLEXIBLE = 16


def render(view: ServiceView, width: int, height: int | None = None) -> RenderableType:
    """The whole picture, no wider and no higher than the terminal.

    Args:
        view: what to show.
        width: of the terminal, in characters.
        height: of the terminal, in lines; None shows all jobs.
    """
    rows = fitted(view.rows, None if height is None else max(height - _OTHER_LINES, 1))
    missing = len(view.rows) - len(rows)
    below = [Text(f"and {missing} more", style="dim")] if missing else []
    if not view.rows and view.is_known:
        below.append(Text("no jobs", style="dim"))
    if height is not None:
        below.append(Text("q quits", style="dim"))
    return Group(*_head(view, width), *([_table(rows, width)] if rows else []), *below)


def fitted(rows: Sequence[JobRow], num_lines: int | None) -> list[JobRow]:
    """The rows that so many lines hold: the first, but with some of those that have ended, which are last."""
    if num_lines is None or len(rows) <= num_lines:
        return list(rows)
    going = [row for row in rows if not row.is_over]
    ended = [row for row in rows if row.is_over]
    num_ended = max(num_lines - len(going), min(_NUM_ENDED, num_lines // 3, len(ended)))
    return going[: num_lines - num_ended] + ended[:num_ended]


def short_time(seconds: float) -> str:
    """A length of time in at most six characters: `35 s`, `12 min`, `3.5 h`, `2 d`."""
    if seconds < 99.5:
        return f"{max(seconds, 0.0):.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"


def _head(view: ServiceView, width: int) -> list[Text]:
    silent = view.silent_s >= SILENT_S
    first = Text.assemble(("metasearch", "bold"), f"  {view.address}  ")
    if silent:
        first.append(f"▲ no answer since {view.silent_s:.0f} s, trying again", "bold yellow")
        if view.problem:
            first.append(f": {view.problem}", "yellow")
    else:
        first.append(*(("serving", "cyan") if view.is_known else ("connecting", "")))
    second = Text(f"{view.jobs_running} running, {view.jobs_queued} queued; ")
    if not view.epoch:
        second.append("▲ no coordinator yet", "bold yellow")
    elif view.beat_age_s >= BEAT_LATE_S and not silent:
        second.append(f"▲ coordinator {view.epoch}: no sign of life for {short_time(view.beat_age_s)}", "bold yellow")
    else:
        second.append(f"coordinator {view.epoch}, {view.workers} worker{'' if view.workers == 1 else 's'}")
    for line in (first, second):
        line.truncate(width, overflow="ellipsis")
    return [first, second] if view.is_known else [first]


def _table(rows: Sequence[JobRow], width: int) -> Table:
    shown = [column for column in _COLUMNS if width >= column.from_width]
    table = Table(box=None, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", width=width)
    last_flexible = [column for column in shown if column.width is None][-1:]
    for column in shown:
        table.add_column(
            column.title,
            width=column.wide if column.wide is not None and width >= _WIDE else column.width,
            max_width=_MAX_FLEXIBLE if column not in last_flexible else None,
            ratio=1 if column in last_flexible else None,  # it has what is left
            justify="right" if column.is_number else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(column.cell(row, width) for column in shown), style="dim" if row.state == "cancelled" else "")
    return table


def _state(row: JobRow, width: int) -> Text:
    letter, style = _STATES.get(row.state, ("?", ""))
    return Text(f"{letter} {row.state}", style)


def _progress(row: JobRow, width: int) -> RenderableType:
    if not row.total:
        return Text("")
    style = _STATES[row.state][1] if row.state in _STATES else ""
    grid = Table.grid(padding=(0, 1, 0, 0))
    length = 14 if width >= _WIDE else 7
    bar = ProgressBar(row.total, row.done, width=length, complete_style=style, finished_style=style)
    text = f"{row.done}/{row.total}" if width >= _WIDE else f"{100 * row.done // row.total}%"
    grid.add_row(bar, Text(text))
    return grid


def _left(row: JobRow, width: int) -> Text:
    return Text("" if row.eta_s is None or row.is_over else short_time(row.eta_s))


_COLUMNS = (
    _Column("job", lambda row, width: Text(row.name.rpartition("/")[2]), width=22),
    _Column("study", lambda row, width: Text(row.name.split("/")[1]), 80, None),
    _Column("kind", lambda row, width: Text(row.kind), 60, 10),
    _Column("state", _state, 0, 12),
    _Column("progress", _progress, 50, 12, 26),
    _Column("left", _left, 72, 6, is_number=True),
    _Column(
        "acc", lambda row, width: Text("" if row.accuracy is None else f"{row.accuracy:.3f}"), 66, 5, is_number=True
    ),
    _Column("try", lambda row, width: Text(f"{row.attempt or ''}"), 96, 3, is_number=True),
    _Column("age", lambda row, width: Text(short_time(row.age_s)), 86, 6, is_number=True),
    _Column("worker", lambda row, width: Text(row.worker), 106, 10),
    _Column("note", lambda row, width: Text(row.note), 124, None),
)
