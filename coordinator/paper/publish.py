"""Writes what came out of a run: the page, the figures as files, and all of their numbers as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from common.storage import ArtifactFolder
from coordinator.drawing import cells_figure
from coordinator.paper.figures import figure2, figure3, figure4
from coordinator.paper.outcome import RESULTS, Outcome
from coordinator.paper.page import page
from coordinator.paper.places import run_places
from coordinator.paper.plain import plain
from coordinator.report import DOTS_PER_INCH

PAGE = "paper.html"
FIGURES, CELLS = "figures", "cells"
SUFFIXES = (".png", ".svg")


def publish(outcome: Outcome, folder: Path) -> Path:
    """Writes paper.html, results.json, figures/ and cells/, the two last as PNG and SVG.

    Figures of an earlier call are replaced; what has not been run has no file.

    Returns:
        The page's path.

    Raises:
        UnavailableError: the folder cannot be written to.
    """
    target = ArtifactFolder(folder)
    target.write(RESULTS, json.dumps(plain(outcome), indent=2).encode())
    target.write(PAGE, page(outcome).encode())
    for name, drawing in _drawings(outcome).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in SUFFIXES:
            drawing.savefig(path.with_suffix(suffix), dpi=DOTS_PER_INCH, facecolor="white")
    return folder / PAGE


def _drawings(outcome: Outcome) -> Mapping[str, Figure]:
    """Figures by name."""
    table = next(table for table in outcome.tables if table.name == "imagenet")
    own = run_places(table, outcome.meta)
    drawings = {f"{FIGURES}/figure2": figure2(own, table.images, table.is_stand_in)}
    if outcome.figure3 is not None:
        drawings[f"{FIGURES}/figure3"] = figure3(outcome.figure3)
    if outcome.figure4 is not None:
        drawings[f"{FIGURES}/figure4"] = figure4(outcome.figure4)
    for cell in outcome.cells:
        if cell.genotype is not None:
            drawings[f"{CELLS}/{cell.key}"] = cells_figure(cell.genotype, cell.title)
    return drawings
