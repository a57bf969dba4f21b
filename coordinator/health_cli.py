"""The commands that ask a process of the service whether it is well."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from common.errors import InvalidInputError, MetaSearchError, NotFoundError
from coordinator.api.connection import CA_VARIABLE, DEFAULT_ADDRESS, Tls
from coordinator.health import GCS_URL, RAYLET_URL, check_coordinator, check_gateway, check_node
from coordinator.service_access import ServerOption
from coordinator.serving_cli import SettingsOption
from coordinator.settings import load_settings, open_ledger
from coordinator.store.jobs import JobStore

_messages = Console(stderr=True, highlight=False)

health_app = typer.Typer(
    no_args_is_help=True,
    help="""Is a process of the service well? Exit status 0 if it is, 1 if not; for containers and load balancers.""",
)

TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for the answer.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.add_typer(health_app, name="health", rich_help_panel="Service")


@health_app.command("gateway")
def health_gateway(
    server: ServerOption = None,
    ca: Annotated[
        Path | None,
        typer.Option(envvar=CA_VARIABLE, help="PEM of the authority that signed its certificate; else plain text."),
    ] = None,
    server_name: Annotated[
        str | None, typer.Option(help="Name in the certificate, where it is not the host that is asked.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM of one's own certificate, for mutual TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM of its key.")] = None,
    timeout_s: TimeoutOption = 5.0,
) -> None:
    """Asks a gateway by the gRPC health protocol. It does not serve while it drains, or cannot reach its job store.

    Example: `metasearch health gateway --server search.example.com:7171 --ca ca.pem`.
    """
    with _verdict():
        if (certificate is None) != (key is None):
            raise InvalidInputError("--certificate and --key go together")
        if ca is None and (server_name or certificate):
            raise InvalidInputError("--server-name and --certificate need --ca")
        tls = None if ca is None else Tls(*map(_content, (ca, certificate, key)))
        address = server or DEFAULT_ADDRESS
        check_gateway(address, tls, server_name, timeout_s)
        print(f"the gateway at {address} serves")


@health_app.command("coordinator")
def health_coordinator(
    settings: SettingsOption = None,
    store: Annotated[str | None, typer.Option(help="sqlite:PATH or redis://HOST:PORT/DB.")] = None,
    timeout_s: TimeoutOption = 10.0,
) -> None:
    """Waits for a sign of life of the coordinator in the job store, wherever on the Ray cluster it is.

    Example: `metasearch health coordinator --settings service.toml`.
    """
    with _verdict():
        ledger = open_ledger(load_settings(settings, {"store": store}).store)
        try:
            print(f"the coordinator beats: {check_coordinator(JobStore(ledger), timeout_s)}")
        finally:
            ledger.close()


@health_app.command("node")
def health_node(
    raylet: Annotated[str, typer.Option(metavar="URL", help="Where the raylet of this machine is asked.")] = RAYLET_URL,
    head: Annotated[bool, typer.Option("--head", help="Ask for the cluster's control store (GCS) too.")] = False,
    gcs: Annotated[
        str, typer.Option(metavar="URL", help="With --head: where the dashboard is asked for it.")
    ] = GCS_URL,
    timeout_s: TimeoutOption = 5.0,
) -> None:
    """Asks the Ray node of this machine; faster than `ray health-check`, and needs neither Ray nor its token."""
    with _verdict():
        check_node([raylet, gcs] if head else [raylet], timeout_s)
        print("the Ray node is well")


def _content(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error}") from None


@contextmanager
def _verdict() -> Iterator[None]:
    """Containers know two outcomes: whatever is wrong counts as not well."""
    try:
        yield
    except MetaSearchError as error:
        _messages.print(escape(str(error)), soft_wrap=True)
        raise typer.Exit(1) from None
