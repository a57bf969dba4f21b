"""The command that submits a sweep to the service."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from common.errors import InvalidInputError
from common.sweep_config import SweepConfig, read_sweep, validate_sweep
from coordinator.api.client import SearchClient
from coordinator.api.stubs import search_pb2 as pb

JOB_PREFIX = "studies/"


def sweep_tree(
    file: Path | None, architectures: Mapping[str, Any], overrides: list[str]
) -> tuple[dict[str, Any], SweepConfig]:
    """What a sweep job is to try, as plain values, checked as far as can be without the study.

    Raises:
        InvalidInputError: a field is wrong, or has no place in a job.
    """
    tree = {} if file is None else read_sweep(file)
    if "study" in tree:
        raise InvalidInputError(f"{file}: study: the job's study is varied; leave it out")
    given = {name: value for name, value in architectures.items() if value is not None}
    if given or overrides:
        if "space" in tree:
            raise InvalidInputError(f"{', '.join(given) or '--set'}: {file} has a [space]; leave it out")
        table = tree.get("architectures", {})
        tree["architectures"] = {**table, **given}
        if overrides:
            tree["architectures"]["overrides"] = [*table.get("overrides", ()), *overrides]
    return tree, validate_sweep(tree)


def submit_sweep(client: SearchClient, study: str, tree: dict[str, Any], config: SweepConfig, **options: Any) -> pb.Job:
    """Submits it; architectures of a run or job are looked up here, those of the study's prior by the service."""
    chosen = config.architectures
    if chosen is None:
        return client.sweep(study, tree, **options)
    if chosen.data is None:
        raise InvalidInputError("architectures.data is missing; add it, or --data")
    found: list[tuple[str, float]] = []
    if chosen.of is not None:
        with tempfile.TemporaryDirectory(prefix="metasearch-sweep-") as temporary:
            from coordinator.architectures import candidates_of

            source = posterior_file(client, chosen.of, Path(temporary))
            found = [(each.genotype.to_json(), each.probability) for each in candidates_of(source, chosen.top)]
    return client.sweep(study, tree, chosen.data, found, **options)


def posterior_file(client: SearchClient, source: str, folder: Path) -> str:
    """A path that `candidates_of` reads: of a job, its result, fetched into a folder."""
    if source.startswith(JOB_PREFIX) and not Path(source).exists():
        return str(client.download(source, folder, ["result.json"])[0])
    return source


def trial_table(result: pb.SweepResult) -> Table:
    """The trials of a finished job, best first."""
    keys = list(json.loads(result.trials[0].values_json)) if result.trials else []
    columns = ["trial", "state", "rounds", f"{result.metric} (95 % interval)", *keys]
    table = Table(*columns, show_edge=False)
    for trial in sorted(result.trials, key=lambda each: each.number != result.best):
        values = json.loads(trial.values_json)
        interval = f" ({trial.low:.3f}-{trial.high:.3f})" if trial.HasField("low") else ""
        value = f"{trial.value:.3f}{interval}" if trial.HasField("value") else ""
        written = [f"{each:.3g}" if isinstance(each, float) else json.dumps(each) for each in values.values()]
        table.add_row(str(trial.number), trial.state, str(trial.rounds), value, *written)
    return table
