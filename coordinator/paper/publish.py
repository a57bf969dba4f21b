"""Writes what came out of a run: the page, the figures as files, and all of their numbers as JSON."""

import json
from pathlib import Path

from common.storage import ArtifactFolder
from coordinator.paper.outcome import RESULTS, Outcome, plain


def publish(outcome: Outcome, folder: Path) -> Path:
    """Writes results.json."""
    target = ArtifactFolder(folder)
    target.write(RESULTS, json.dumps(plain(outcome), indent=2).encode())
    return folder / RESULTS
