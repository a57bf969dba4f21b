"""Progress where there is no terminal: a line now and then."""

import io
from collections.abc import Iterator

from rich.console import Console

from coordinator.progress import LINE_EVERY_S, Bar


def lines_of(shown: list[tuple[int, int | None, str]], step_s: float, **arguments: object) -> list[str]:
    """What is printed while it is shown every `step_s` seconds how far something is."""
    text = io.StringIO()
    clock: Iterator[int] = iter(range(1000))
    with Bar(Console(file=text), "Rounds", clock_s=lambda: next(clock) * step_s, **arguments) as bar:  # type: ignore[arg-type]
        for done, total, note in shown:
            bar.show(done, total, note)
    return text.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    shown = [(1, None, ""), (2, None, ""), (3, None, "loss 1.5")]
    assert lines_of(shown, LINE_EVERY_S / 2, total=9, done=0) == ["Rounds 2/9  ETA 35 s"]
    assert lines_of(shown, LINE_EVERY_S, total=9, done=0)[-1] == "Rounds 3/9  loss 1.5  ETA 60 s"


def test_what_was_done_before_has_no_part_in_the_time_that_is_left() -> None:
    # 2 of 8 took 20 s; 6 are left.
    assert lines_of([(5, None, ""), (6, None, "")], LINE_EVERY_S, total=12, done=4)[-1] == "Rounds 6/12  ETA 60 s"
    # Where it began is not known before the first time: nothing was done since.
    assert lines_of([(4, 12, "")], LINE_EVERY_S) == ["Rounds 4/12"]


def test_notes_and_labels_are_no_markup_and_a_quiet_bar_says_nothing() -> None:
    assert lines_of([(1, 2, "[red]x")], LINE_EVERY_S, unit="steps") == ["Rounds 1/2 steps  [red]x"]
    assert lines_of([(1, 2, "")], LINE_EVERY_S, is_quiet=True) == []
