"""The commands that talk to the service."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import AdaptationError, InvalidInputError, NotFoundError
from common.evaluate_config import PRESETS
from common.loading import preset_names
from coordinator.api.client import SearchClient
from coordinator.api.connection import TERMINAL_STATES
from coordinator.api.stubs import search_pb2 as pb
from coordinator.live_jobs import accuracy_of
from coordinator.predictions import few_shot_summary
from coordinator.progress import bar_on
from coordinator.service_access import ServerOption, TokenOption, connected, folder_of, study_name
from coordinator.sweep_client_cli import submit_sweep, sweep_tree, trial_table

_messages = Console(stderr=True, highlight=False)

study_app = typer.Typer(no_args_is_help=True, help="Studies: each owns one lineage of priors.")
prior_app = typer.Typer(no_args_is_help=True, help="Priors of a study.")

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="studies/STUDY/jobs/ID")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for command in (jobs, watch, result, cancel, pause, resume, upload):
        app.command(rich_help_panel="Service")(command)
    for name, sub in (("study", study_app), ("prior", prior_app)):
        app.add_typer(sub, name=name, rich_help_panel="Service")


@study_app.command("create")
def study_create(
    study: Annotated[str, typer.Argument(help="Lower-case letters, digits, hyphens.")],
    preset: Annotated[str, typer.Option(help=f"{', '.join(preset_names())}, or a TOML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Changes a field.")
    ] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begins a study. The same again changes nothing."""
    with connected(server, token) as client:
        if preset in preset_names():
            found = client.create_study(study, preset=preset, overrides=overrides or [])
        else:
            from common.loading import load

            config = load(preset, overrides or []).model_dump(mode="json")
            found = client.create_study(study, config=config)
    _show(found, as_json, f"{found.name} is there; prior version {found.prior_version}")


@study_app.command("list")
def study_list(server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False) -> None:
    """Lists studies."""
    with connected(server, token) as client:
        studies = list(client.list_studies())
    if as_json:
        print(json.dumps([_plain(study) for study in studies]))
        return
    table = Table("study", "prior", "since", show_edge=False)
    for study in studies:
        table.add_row(study.name, str(study.prior_version), study.create_time.ToJsonString())
    Console().print(table)


@study_app.command("show")
def study_show(
    study: Annotated[str, typer.Argument(help="studies/STUDY, or STUDY.")],
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Prints a study and its configuration, as JSON."""
    with connected(server, token) as client:
        print(json.dumps(_plain(client.get_study(study_name(study))), indent=2))


@study_app.command("train")
def study_train(
    study: Annotated[str, typer.Argument(help="studies/STUDY, or STUDY.")],
    until_version: Annotated[int, typer.Option(min=0, help="Version to stop at; the study's rounds by default.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until it has ended.")] = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submits a job that runs the study's rounds."""
    with connected(server, token) as client:
        job = client.meta_train(study_name(study), until_version)
        _after_submit(client, job, wait, as_json)


@study_app.command("sweep")
def study_sweep(
    study: Annotated[str, typer.Argument(help="studies/STUDY, or STUDY: its configuration is varied.")],
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="TOML file that says what to try.")] = None,
    architectures: Annotated[
        str | None,
        typer.Option(metavar="RUN|RESULT|JOB", help="Train this posterior's most probable architectures instead."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=2, help="How many architectures; of the study's prior alone.")] = None,
    data: Annotated[str | None, typer.Option(help="Images to train architectures on, as in `submit`.")] = None,
    recipe: Annotated[str | None, typer.Option(help=f"For architectures: {', '.join(PRESETS)}.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Changes a field of the recipe.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show progress until it has ended.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and create nothing.")] = False,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submits a job that tries many configurations of a study, or trains the best architectures of a posterior.

    Example: `metasearch study sweep mine sweep.toml --wait`.
    """
    given = {"of": architectures, "top": top, "data": data, "recipe": recipe}
    tree, config = sweep_tree(file, given, overrides or [])
    with connected(server, token) as client:
        job = submit_sweep(client, study_name(study), tree, config, validate_only=dry_run)
        after_create(client, job, dry_run, wait, as_json)


def jobs(
    study: Annotated[str, typer.Option(help="studies/STUDY, or STUDY.")],
    limit: Annotated[int, typer.Option(min=1, help="The youngest so many.")] = 50,
    state: Annotated[list[str] | None, typer.Option(help="Only these: queued, running, ... Repeatable.")] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists jobs, the youngest first."""
    states: list[Any] = []
    for name in state or []:
        if f"JOB_STATE_{name.upper()}" not in pb.JobState.keys():  # noqa: SIM118 not a dict
            known = ", ".join(_word(key) for key in pb.JobState.keys()[1:])
            raise InvalidInputError(f"--state must be one of {known}, got {name!r}")
        states.append(pb.JobState.Value(f"JOB_STATE_{name.upper()}"))
    with connected(server, token) as client:
        found = [job for job, _ in zip(client.list_jobs(study_name(study), states), range(limit), strict=False)]
    if as_json:
        print(json.dumps([_plain(job) for job in found]))
        return
    table = Table("job", "kind", "state", "progress", "accuracy", "note", show_edge=False)
    for job in found:
        accuracy = accuracy_of(job)
        table.add_row(
            job.name,
            job.spec.WhichOneof("kind") or "",
            _state(job) + (" (paused)" if job.paused else ""),
            f"{job.progress.done}/{job.progress.total}" if job.progress.total else "",
            "" if accuracy is None else f"{accuracy:.3f}",
            escape(job.failure.message or job.note),
        )
    Console().print(table)


def watch(
    job: JobArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Follows a job until it has ended: state, progress, the best so far. With `--json`, one object per line."""
    with connected(server, token) as client:
        _follow(client, job, as_json)


def result(
    job: JobArgument,
    out: Annotated[Path | None, typer.Option(help="Folder to download the artifacts to.")] = None,
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Shows what a job has found, and with `--out` downloads its artifacts: adapted weights, posterior, curve."""
    with connected(server, token) as client:
        found = client.get_job(job)
        if found.state not in TERMINAL_STATES:
            raise NotFoundError(f"{job} has no result yet; it is {_state(found)}: metasearch watch {job}")
        if as_json:
            print(json.dumps(_plain(found)))
        _summarise(found)
        if out is not None and found.state == pb.JOB_STATE_SUCCEEDED:
            for artifact in found.artifacts:
                (path,) = client.download(job, folder_of(artifact.name, found, out), [artifact.name])
                _messages.print(escape(str(path)), soft_wrap=True)
        _raise_failure(found)


def cancel(
    job: JobArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Cancels a job."""
    with connected(server, token) as client:
        found = client.cancel(job)
    _show(found, as_json, f"{job} is {_state(found)}")


def pause(
    job: JobArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Pauses a job; meta-training stops after its present round."""
    with connected(server, token) as client:
        found = client.pause(job)
    _show(found, as_json, f"{job} is {_state(found)}, paused")


def resume(
    job: JobArgument, server: ServerOption = None, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Lets a paused job go on."""
    with connected(server, token) as client:
        found = client.resume(job)
    _show(found, as_json, f"{job} is {_state(found)}")


def upload(
    path: Annotated[Path, typer.Argument(help="Image folder, zip, tar or npz file.")],
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stores data with the service; identical data is stored once."""
    with connected(server, token) as client:
        found = client.upload(path)
    _show(found, as_json, f"{found.name}  {found.num_bytes} bytes  {escape(found.title)}")


@prior_app.command("list")
def prior_list(
    study: Annotated[str, typer.Argument(help="studies/STUDY, or STUDY.")],
    server: ServerOption = None,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the versions of a study's prior that are kept, the latest first."""
    with connected(server, token) as client:
        priors = list(client.list_priors(study_name(study)))
    if as_json:
        print(json.dumps([_plain(prior) for prior in priors]))
        return
    table = Table("prior", "made", "by", "sha256", show_edge=False)
    for prior in priors:
        table.add_row(prior.name, prior.create_time.ToJsonString(), prior.made_by, prior.sha256)
    Console().print(table)


@prior_app.command("show")
def prior_show(
    prior: Annotated[str, typer.Argument(help="studies/STUDY/priors/VERSION, or .../latest.")],
    server: ServerOption = None,
    token: TokenOption = None,
) -> None:
    """Prints a version of the prior: digest, origin, metrics of its round; as JSON."""
    with connected(server, token) as client:
        print(json.dumps(_plain(client.get_prior(prior)), indent=2))


def after_create(client: SearchClient, job: pb.Job, dry_run: bool, wait: bool, as_json: bool) -> None:
    """Says what became of a request: checked, queued, or with `wait` how the job goes and ends."""
    if dry_run:
        _show(job, as_json, "The job is fine; nothing was created.")
    else:
        _after_submit(client, job, wait, as_json)


def _after_submit(client: SearchClient, job: pb.Job, wait: bool, as_json: bool) -> None:
    if wait:
        if not as_json:
            _messages.print(job.name)
        _follow(client, job.name, as_json)
    else:
        _show(job, as_json, f"{job.name}  (metasearch watch {job.name})")


def _follow(client: SearchClient, name: str, as_json: bool) -> None:
    bar = bar_on(_messages, is_quiet=as_json)
    job = pb.Job()
    last_line = ""
    with bar:
        task = bar.add_task("queued", total=None, note="")
        for response in client.watch(name):
            job = response.job
            note = f"accuracy {job.progress.accuracy:.3f}" if job.progress.HasField("accuracy") else escape(job.note)
            if as_json:
                print(json.dumps(_plain(response)), flush=True)
            elif not _messages.is_terminal:
                done = f"{job.progress.done}/{job.progress.total}" if job.progress.total else ""
                line = " ".join(word for word in (_state(job), done, note) if word)
                if line != last_line:
                    _messages.print(line, soft_wrap=True)
                last_line = line
            bar.update(
                task, description=_state(job), total=job.progress.total or None, completed=job.progress.done, note=note
            )
    if not as_json:
        _summarise(job)
    _raise_failure(job)


def _summarise(job: pb.Job) -> None:
    _messages.print(f"{job.name}: {_state(job)}, attempt {job.attempt}", soft_wrap=True)
    if job.HasField("adapt_result"):
        found = job.adapt_result
        table = Table("step", "accuracy", "loss (nats)", show_edge=False)
        for evaluation in found.evaluations:
            table.add_row(str(evaluation.step), f"{evaluation.accuracy:.3f}", f"{evaluation.loss_nats:.3f}")
        _messages.print(table)
        for kind, nodes in json.loads(found.genotype_json)["cells"].items():
            text = " | ".join(" + ".join(f"{edge['primitive']}({edge['source']})" for edge in node) for node in nodes)
            _messages.print(f"{kind}: {text}  (entropy {found.entropy_nats[kind]:.2f} nats)", soft_wrap=True)
        latency = f"{found.latency_ms:.3f} ms by the latency table; " if found.HasField("latency_ms") else ""
        _messages.print(
            f"probability {found.genotype_probability:.3g}; {found.num_params:,} parameters, {found.num_macs:,} MACs; "
            f"{latency}from prior version {found.prior_version}"
        )
        if found.HasField("fine_tuned"):
            tuned = found.fine_tuned
            _messages.print(
                f"the derived network, fine-tuned for {tuned.steps} steps: accuracy "
                f"{tuned.inductive_accuracy:.4f} image by image, {tuned.accuracy:.4f} by joint statistics"
            )
    if job.HasField("evaluate_result"):
        tested = job.evaluate_result
        _messages.print(
            f"accuracy {tested.accuracy:.4f}, 95 % interval {tested.accuracy_low:.4f} to {tested.accuracy_high:.4f}, "
            f"on {tested.num_test} test images after {tested.epochs} epochs; {tested.num_params:,} parameters, "
            f"{tested.num_macs:,} MACs"
        )
    if job.HasField("sweep_result"):
        _messages.print(trial_table(job.sweep_result))
    if job.HasField("few_shot_result"):
        for part in few_shot_summary(job.few_shot_result):
            _messages.print(part, soft_wrap=True)
    if job.HasField("meta_train_result"):
        found_prior = job.meta_train_result
        _messages.print(
            f"prior version {found_prior.prior_version}, SHA-256 {found_prior.prior_sha256}", soft_wrap=True
        )
    for artifact in job.artifacts:
        _messages.print(
            f"artifact {artifact.name}: {artifact.num_bytes} bytes, SHA-256 {artifact.sha256}", soft_wrap=True
        )


def _raise_failure(job: pb.Job) -> None:
    if job.state == pb.JOB_STATE_FAILED:
        raise AdaptationError(
            f"{job.name} failed: {_word(pb.FailureReason.Name(job.failure.reason))}: {job.failure.message}"
        )
    if job.state == pb.JOB_STATE_CANCELLED:
        raise AdaptationError(f"{job.name} was cancelled")


def _show(message: Any, as_json: bool, text: str) -> None:
    if as_json:
        print(json.dumps(_plain(message)))
    else:
        Console(highlight=False).print(text, soft_wrap=True)


def _plain(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _state(job: pb.Job) -> str:
    return _word(pb.JobState.Name(job.state))


def _word(name: str) -> str:
    return name.removeprefix("JOB_STATE_").removeprefix("FAILURE_REASON_").lower()
