"""The table of jobs, as text."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from coordinator.job_table import JobRow, ServiceView, fitted, render, short_time

ID = "019abcdef0123456789ab"


def row(number: int = 0, state: str = "running", **changes: object) -> JobRow:
    plain = JobRow(f"studies/mine/jobs/{ID}{number}", "adapt", state, 5, 20, 95.0, 0.9125, 1, 61.0, "worker-3", "")
    return replace(plain, **changes)  # type: ignore[arg-type]


VIEW = ServiceView("127.0.0.1:7171", True, 1, 2, 4, 2, 0.5, (row(),))


def lines(view: ServiceView, width: int = 80, height: int | None = 24, colour: bool = False) -> list[str]:
    """What a terminal of that size shows."""
    file = io.StringIO()
    console = Console(
        file=file, width=width, height=height or 25, force_terminal=colour, color_system="truecolor" if colour else None
    )
    console.print(render(view, width, height))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_row_says_all_that_80_columns_hold() -> None:
    head, second, titles, job, last = lines(VIEW)
    assert head == "metasearch  127.0.0.1:7171  serving"
    assert second == "1 running, 2 queued; coordinator 4, 2 workers"
    assert titles.split() == ["job", "study", "kind", "state", "progress", "left", "acc"]
    assert job.split() == [f"{ID}0", "mine", "adapt", "●", "running", "━╸", "25%", "95", "s", "0.912"]
    assert last == "q quits"


def test_a_wide_terminal_has_attempt_age_worker_and_what_happened_last() -> None:
    view = replace(VIEW, rows=(row(attempt=2, note="the worker died"),))
    titles, job = lines(view, width=144)[2:4]
    assert titles.split()[-4:] == ["try", "age", "worker", "note"]
    assert job.split()[-7:] == ["2", "61", "s", "worker-3", "the", "worker", "died"]
    assert "5/20" in job


@pytest.mark.parametrize("width", [30, 40, 50, 60, 66, 72, 80, 86, 96, 106, 124, 144, 200])
def test_no_line_is_wider_than_the_terminal_nor_are_there_more_than_it_has(width: int) -> None:
    states = ("running", "cancelling", "queued", "paused", "succeeded", "failed", "cancelled")
    rows = [row(number % 10, state, note="x" * 300) for number, state in enumerate(states * 9)]
    rows[0] = replace(rows[0], name=f"studies/{'long' * 9}/jobs/{ID}0", total=10_000_000, done=9_999_999)
    for view in (replace(VIEW, rows=rows), replace(VIEW, rows=rows, silent_s=7.0, problem="y" * 300)):
        shown = lines(view, width, 12)
        assert len(shown) < 12
        assert max(map(len, shown)) <= width
        text = "\n".join(shown)
        assert ID[:19] in text
        assert width < 66 or "0.912" in text, "no number is cut"


def test_every_state_has_a_letter_of_its_own_with_its_word() -> None:
    states = ["running", "cancelling", "queued", "paused", "succeeded", "failed", "cancelled"]
    shown = lines(replace(VIEW, rows=[row(state=state) for state in states]))[3:-1]
    letters = [line.split()[3] for line in shown]
    assert [line.split()[4] for line in shown] == states
    assert len(set(letters)) == len(states)


def test_time_that_is_left_is_not_told_of_what_has_ended() -> None:
    assert "95 s" in lines(VIEW)[3]
    assert "95 s" not in lines(replace(VIEW, rows=(row(state="failed"),)))[3]


def test_a_service_that_does_not_answer_is_told_with_the_last_that_was_known() -> None:
    silent = replace(VIEW, silent_s=3.0, problem="connection refused")
    head, second, *_ = lines(silent, 120)
    assert head == "metasearch  127.0.0.1:7171  ▲ no answer since 3 s, trying again: connection refused"
    assert second == "1 running, 2 queued; coordinator 4, 2 workers"
    assert lines(silent)[3] == lines(VIEW)[3]
    assert lines(replace(silent, silent_s=1.0))[0].endswith("serving"), "not at once"
    unknown = ServiceView("nowhere:1", is_known=False)
    assert lines(unknown) == ["metasearch  nowhere:1  connecting", "q quits"]
    assert lines(replace(unknown, silent_s=9.0))[0].endswith("no answer since 9 s, trying again")


def test_a_coordinator_that_gives_no_sign_of_life_or_is_not_there_is_told() -> None:
    assert lines(replace(VIEW, beat_age_s=12.0))[1].endswith("▲ coordinator 4: no sign of life for 12 s")
    assert lines(replace(VIEW, epoch=0))[1].endswith("▲ no coordinator yet")
    assert lines(replace(VIEW, workers=1))[1].endswith("coordinator 4, 1 worker")
    assert "no jobs" in lines(replace(VIEW, rows=()))


def test_text_of_users_is_no_markup() -> None:
    assert "[red]x[/]" in lines(replace(VIEW, rows=(row(note="[red]x[/]"),)), 144)[3]


def test_colours_are_used_where_they_are_wanted_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" not in "\n".join(lines(VIEW))
    assert "\x1b[1;36m● running" in "\n".join(lines(VIEW, colour=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "36m" not in "\n".join(lines(VIEW, colour=True))


def test_few_lines_show_what_runs_first_and_some_of_what_ended() -> None:
    going = [row(number, "running" if number < 2 else "queued") for number in range(8)]
    ended = [row(number, "succeeded") for number in range(8)]
    assert fitted([*going, *ended], None) == [*going, *ended]
    assert fitted([*going, *ended], 16) == [*going, *ended]
    assert fitted([*going, *ended], 12) == [*going, *ended[:4]]
    assert fitted([*going, *ended], 6) == [*going[:4], *ended[:2]]
    assert fitted([*going, *ended], 1) == going[:1]
    assert fitted(ended, 3) == ended[:3]
    assert "and 13 more" in lines(replace(VIEW, rows=[*going, *ended]), height=9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (5999, "1.7 h"), (172_800, "2 d")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert short_time(seconds) == text
