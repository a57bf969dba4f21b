"""The command that shows the service's jobs, live."""

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from common.errors import UnavailableError
from coordinator.api.client import SearchClient
from coordinator.interrupts import asked_to_stop
from coordinator.job_table import ServiceView, render
from coordinator.live_jobs import LiveJobs
from coordinator.service_access import ServerOption, TokenOption, connected, study_name

_LOOK_S = 0.1
_TIMEOUT_S = 3.0


def register(app: typer.Typer) -> None:
    """Adds the command to the command line."""
    app.command(rich_help_panel="Service")(top)


def top(
    study: Annotated[str | None, typer.Option(help="studies/STUDY, or STUDY; all by default.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print the table, and end; so it is without a terminal.")
    ] = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output, once.")] = False,
) -> None:
    """Shows jobs as they run: state, progress, time left, best accuracy. `q` or Ctrl-C quits."""
    console = Console(highlight=False)
    shown = None if study is None else study_name(study)
    if once or as_json or not console.is_terminal or console.is_dumb_terminal:
        with connected(server, token) as client:
            view = LiveJobs(client, shown, time.monotonic).poll()
        if as_json:
            print(json.dumps(asdict(view)))
        else:
            console.print(render(view, console.width))
        return
    with (
        suppress(KeyboardInterrupt),
        connected(server, token, patience_s=0.0, timeout_s=_TIMEOUT_S) as client,
        asked_to_stop() as is_asked,
    ):
        _follow(client, shown, interval, console, is_asked)


def _follow(
    client: SearchClient, study: str | None, interval_s: float, console: Console, is_asked: Callable[[], bool]
) -> None:
    """Draws until someone quits. Asks on a thread of its own: keys are heard while the service does not answer."""
    jobs = LiveJobs(client, study, time.monotonic)
    view = ServiceView(client.address, is_known=False)
    answered_s = time.monotonic()
    next_s, problem = answered_s, ""
    call: Future[ServiceView] | None = None
    drawn: object = None
    with (
        ThreadPoolExecutor(1, "top") as asking,
        Live(console=console, screen=True, auto_refresh=False) as live,
        _keys() as quits,
    ):
        while not (quits(_LOOK_S) or is_asked()):
            now_s = time.monotonic()
            if call is None and now_s >= next_s:
                call = asking.submit(jobs.poll)
            if call is not None and call.done():
                try:
                    view, answered_s, problem = call.result(), now_s, ""
                except UnavailableError as error:
                    problem = str(error)
                call, next_s = None, now_s + interval_s
            silent_s = float(int(now_s - answered_s)) if problem or call is not None else 0.0
            wanted = (replace(view, silent_s=silent_s, problem=problem), console.size)
            if wanted != drawn:
                live.update(render(wanted[0], console.width, console.height), refresh=True)
                drawn = wanted


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits for some seconds, and says whether `q` was pressed meanwhile."""
    file = sys.stdin.fileno()

    def never(timeout_s: float) -> bool:
        time.sleep(timeout_s)
        return False

    def quits(timeout_s: float) -> bool:
        ready, _, _ = select.select([file], [], [], timeout_s)
        if not ready:
            return False
        keys = os.read(file, 64)
        return not keys or b"q" in keys.lower()  # nothing where the terminal is gone

    if not os.isatty(file):
        yield never
        return
    before = termios.tcgetattr(file)
    tty.setcbreak(file)  # keys come at once; Ctrl-C remains what it is
    try:
        yield quits
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)
