"""The commands that run the service."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from common.errors import InvalidInputError
from coordinator.local_service import DEFAULT_FOLDER
from coordinator.settings import ENVIRONMENT_PREFIX, ServiceSettings, load_settings

# Ray, and the gateway's own imports, wait until a command needs them.

_messages = Console(stderr=True, highlight=False)

token_app = typer.Typer(no_args_is_help=True, help="API tokens of the service.")

SettingsOption = Annotated[Path | None, typer.Option("--settings", help="TOML or JSON file of service settings.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    for command in (serve, coordinate):
        app.command(rich_help_panel="Service")(command)
    app.add_typer(token_app, name="token", rich_help_panel="Service")


def serve(
    settings: SettingsOption = None,
    listen: Annotated[str | None, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = None,
    store: Annotated[str | None, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB.")] = None,
    artifacts: Annotated[str | None, typer.Option(help="Folder or fsspec URL.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="File of hashed API tokens.")] = None,
    metrics_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for Prometheus, for example 127.0.0.1:9464; none if not given.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Everything on this machine, a local Ray included.")] = False,
    folder: Annotated[Path, typer.Option(help="With --local: where everything is kept.")] = DEFAULT_FOLDER,
    workers: Annotated[int | None, typer.Option(min=1, help="With --local: worker actors.")] = None,
) -> None:
    """Serves the API; with `--local`, runs the coordinator and a local Ray too.

    Ctrl-C or SIGTERM drains: no new calls, running work is finished or handed over.
    """
    changes: dict[str, Any] = {
        "listen": listen,
        "store": store,
        "artifacts": artifacts,
        "tokens": tokens,
        "metrics_listen": metrics_listen,
    }
    if local:
        _serve_local(settings, changes, folder.resolve(), workers)
        return
    from common.telemetry import logger_for
    from coordinator.api.gateway import run_gateway
    from coordinator.local_service import READY

    found = load_settings(settings, changes)

    def ready(port: int) -> None:
        host = found.listen.rpartition(":")[0]
        sys.stdout.write(READY + json.dumps({"host": host, "port": port}) + "\n")  # at once, also where unbuffered
        sys.stdout.flush()

    run_gateway(found, logger_for("gateway"), ready)


def _serve_local(file: Path | None, changes: dict[str, Any], folder: Path, workers: int | None) -> None:
    import signal

    from common.telemetry import logger_for
    from coordinator.local_service import LocalService, local_settings, local_token

    settings = local_settings(folder, file, **changes)
    local_token(settings, folder)
    service = LocalService(settings, logger_for("service"), folder / "logs", workers)

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        service.start()
        host = settings.listen.rpartition(":")[0]
        _messages.print(f"Serving on {host}:{service.port}; logs are in {folder / 'logs'}.", soft_wrap=True)
        for line in service.metrics_lines():
            _messages.print(line, soft_wrap=True)
        _messages.print("In another terminal, in this folder:  metasearch study create mine --preset demo")
        _messages.print(f"Token: {folder / 'token'} (found by itself from here). Ctrl-C stops.", soft_wrap=True)
        service.watch()
    except KeyboardInterrupt:
        _messages.print("Stopping ...")
    finally:
        service.stop()


def coordinate(
    settings: SettingsOption = None,
    address: Annotated[
        str | None, typer.Option("--address", envvar="RAY_ADDRESS", help="Ray cluster: `auto` or HOST:PORT.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Start a local Ray that ends with this process.")] = False,
    store: Annotated[str | None, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB.")] = None,
    artifacts: Annotated[str | None, typer.Option(help="Folder or fsspec URL.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker actors; all the cluster has room for.")] = None,
    max_workers: Annotated[
        int | None,
        typer.Option(min=1, help="As many as there is work for, up to this; an autoscaler adds nodes for them."),
    ] = None,
    min_workers: Annotated[
        int | None, typer.Option(min=0, help="Of a range; kept without work. 1 if not given.")
    ] = None,
    idle_s: Annotated[float, typer.Option(help="After which workers of a range that nobody needs are ended.")] = 60.0,
    gpus_per_worker: Annotated[float | None, typer.Option(min=0, help="1 where the cluster has GPUs, else 0.")] = None,
    task_timeout_s: Annotated[float, typer.Option(min=1, help="A task that takes longer runs again.")] = 3600.0,
    drain: Annotated[
        bool, typer.Option("--drain", help="On SIGTERM, stop the coordinator too, after it handed its work over.")
    ] = False,
) -> None:
    """Keeps a coordinator alive on a Ray cluster: starts it, replaces it when it hangs, also on a new cluster.

    The coordinator is a detached actor: it stays when this command ends, unless `--drain` or `--local` is given.
    """
    import signal

    from common.config import ClusterConfig, explain
    from common.telemetry import logger_for
    from coordinator.supervisor import Supervisor

    if not local and address is None:
        raise InvalidInputError("coordinate needs --address (or RAY_ADDRESS), or --local")
    found = load_settings(settings, {"store": store, "artifacts": artifacts})
    try:
        cluster = ClusterConfig(
            num_workers=workers,
            min_workers=min_workers,
            max_workers=max_workers,
            idle_s=idle_s,
            gpus_per_worker=gpus_per_worker,
            task_timeout_s=task_timeout_s,
        )
    except ValidationError as error:
        raise InvalidInputError("workers: " + explain(error)) from None
    supervisor = Supervisor(_absolute(found), cluster, None if local else address, logger_for("supervisor"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: supervisor.stop())
    supervisor.run(drain or local)


def _absolute(settings: ServiceSettings) -> ServiceSettings:
    """Actors work in other folders."""
    changes: dict[str, Any] = {}
    kind, _, path = settings.store.partition(":")
    if kind == "sqlite":
        changes["store"] = f"sqlite:{Path(path).expanduser().resolve()}"
    if "://" not in settings.artifacts:
        changes["artifacts"] = str(Path(settings.artifacts).expanduser().resolve())
    return settings.model_copy(update=changes)


@token_app.command("create")
def token_create(
    tenant: Annotated[str, typer.Option(help="Whose resources it opens.")],
    role: Annotated[str, typer.Option(help="viewer, submitter or admin.")] = "submitter",
    tokens: Annotated[
        Path, typer.Option(envvar=f"{ENVIRONMENT_PREFIX}TOKENS", help="File of hashed tokens; made where missing.")
    ] = DEFAULT_FOLDER / "tokens.toml",
    title: Annotated[str, typer.Option(help="For people.")] = "",
) -> None:
    """Makes an API token and prints it, once; the file keeps its hash only. Running gateways notice by themselves."""
    from coordinator.api.auth import create_token

    print(create_token(tokens, tenant, role, title))
