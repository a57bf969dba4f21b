"""Parts that sections of a page are made of, and how values are written in them."""

import json
from collections.abc import Sequence
from typing import Any

from coordinator.html_report.markup import Markup, element


def facts_list(facts: Sequence[tuple[str, str]]) -> Markup:
    """Names and values."""
    return element(
        "dl", *(element("div", element("dt", name), element("dd", value)) for name, value in facts), class_="facts"
    )


def chart_grid(charts: Sequence[Markup]) -> Markup:
    """Charts side by side, as many as there is room for."""
    return element("div", *charts, class_="charts")


def folded(title: str, content: Markup, is_open: bool = False) -> Markup:
    """What can be unfolded; printed in any case."""
    return element("details", element("summary", title), content, class_="printed", open="open" if is_open else None)


def missing(sentence: str) -> Markup:
    """Why there is nothing here."""
    return element("p", sentence, class_="missing")


def code(value: str) -> Markup:
    """As it would be typed."""
    return element("code", value)


def written(value: Any) -> str:
    """A plain value: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """A duration as people say it: "0.8 s", "2 min 5 s", "3 h 20 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(num_bytes: int) -> str:
    """A number of bytes as people say it."""
    if num_bytes < 1024:
        return f"{num_bytes} bytes"
    value, unit = (num_bytes / 1024, "KiB") if num_bytes < 1 << 20 else (num_bytes / (1 << 20), "MiB")
    return f"{value:.1f} {unit}" if value < 1024 else f"{value / 1024:.1f} GiB"


def ranges(versions: Sequence[int]) -> str:
    """Versions in words: "0, 48 to 50"."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and version == runs[-1][-1] + 1:
            runs[-1].append(version)
        else:
            runs.append([version])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
