"""How far long work is: a bar on a terminal, else a line now and then."""

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


def bar_on(console: Console, is_quiet: bool = False, unit: str = "") -> Progress:
    """A bar with counts, times and each task's field `note`; shows nothing where the console is no terminal.

    Args:
        console: to draw on.
        is_quiet: shows nothing there either.
        unit: of the counts.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *([TextColumn(unit)] if unit else []),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=is_quiet or not console.is_terminal,
    )


class Bar:
    """Progress of one thing, as a context.

    Args:
        console: to show it on.
        label: what it is of.
        total: what it ends at; None where the first `show` says so.
        done: where it begins, if that is known; what was done before has no part in the time that is left.
        unit: of the counts.
        is_quiet: shows nothing.
        clock_s: seconds.
    """

    def __init__(
        self,
        console: Console,
        label: str,
        total: int | None = None,
        done: int | None = None,
        unit: str = "",
        is_quiet: bool = False,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.done = done or 0
        self._console = console
        self._label = label
        self._total = total
        self._first = done
        self._unit = f" {unit}" if unit else ""
        self._has_lines = not is_quiet and not console.is_terminal
        self._clock_s = clock_s
        self._started_s = self._last_line_s = clock_s()
        self._bar = bar_on(console, is_quiet, unit)
        self._task = self._bar.add_task(escape(label), total=total, completed=self.done, note="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int | None = None, note: str = "") -> None:
        """Shows how far it is; `total` where it has become known, or has changed."""
        self._total = self._total if total is None else total
        self._first = done if self._first is None else self._first
        self.done = max(done, self._first)
        self._bar.update(self._task, completed=self.done, total=self._total, note=escape(note))
        now_s = self._clock_s()
        if not self._has_lines or now_s - self._last_line_s < LINE_EVERY_S:
            return
        self._last_line_s = now_s
        made = self.done - self._first
        ending = ""
        if made and self._total is not None:
            ending = f"  ETA {(now_s - self._started_s) / made * (self._total - self.done):.0f} s"
        counts = f"{self.done}/{self._total}" if self._total is not None else f"{self.done}"
        line = f"{self._label} {counts}{self._unit}  {note}".rstrip()
        self._console.print(escape(f"{line}{ending}"), soft_wrap=True)
