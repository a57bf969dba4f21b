"""Settings of the service's processes: a TOML file, then environment variables, then flags. The same file serves all.

An example with every field is in README.md. `METASEARCH_SERVICE_ARTIFACTS=s3://bucket/metasearch` sets `artifacts`, and
`METASEARCH_SERVICE_STORE_FILE=/run/secrets/store_url` sets `store` to what that file holds: for values that are secret.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from common.config import Frozen, explain
from common.errors import InvalidInputError, NotFoundError, UnavailableError
from coordinator.store.ledger import Ledger
from coordinator.store.records import Quota

ENVIRONMENT_PREFIX = "METASEARCH_SERVICE_"
FILE_SUFFIX = "_FILE"


class TlsSettings(Frozen):
    """Files in PEM; replaced ones are picked up without a restart."""

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    """With it, clients must show a certificate that this authority signed."""


class ServiceSettings(Frozen):
    """See the module."""

    store: str = "sqlite:runs/service/jobs.sqlite"
    """`sqlite:PATH`, or `redis://HOST:PORT/DB` (`rediss://` with TLS)."""
    artifacts: str = "runs/service/artifacts"
    """Folder or fsspec URL that gateway, coordinator and workers all reach."""
    listen: str = "127.0.0.1:7171"
    """HOST:PORT of the gateway; port 0 takes a free one."""
    metrics_listen: str = ""
    """HOST:PORT where the gateway tells Prometheus its metrics, 9464 by convention; port 0 takes a free one. Nowhere if
    empty. In plain text and without a token, so keep it to the network of the monitoring."""
    health_listen: str = ""
    """HOST:PORT where the gateway tells its health, and nothing else, without TLS: for probes that know none. Nowhere
    if empty."""
    tls: TlsSettings = TlsSettings()
    insecure: bool = False
    """Serve without TLS beyond the loopback, where something in front of it ends TLS."""
    tokens: Path = Path("runs/service/tokens.toml")
    """Hashed API tokens, their tenants and roles; `metasearch token create` adds to it."""
    allowed_urls: tuple[str, ...] = ()
    """Prefixes of data URLs that jobs may name, for example `s3://vision-data/`."""
    quota: Quota = Quota()
    """Of every tenant without its own."""
    quotas: Mapping[str, Quota] = {}
    """By tenant."""
    max_upload_bytes: int = Field(16 << 30, ge=1)
    upload_idle_s: float = Field(60.0, gt=0)
    """After which an upload of which nothing more comes is given up."""
    drain_s: float = Field(20.0, gt=0)
    """What a process may take to finish or hand over its work after SIGTERM."""
    beat_s: float = Field(1.0, gt=0)
    """Between two signs of life of the coordinator; without any for ten of them it is replaced."""
    back_off_s: float = Field(1.0, ge=0)
    """Wait before a failed job starts again; doubles with each failure."""

    @field_validator("allowed_urls")
    @classmethod
    def _prefixes(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            if "://" not in prefix or not prefix.endswith("/"):
                raise ValueError(f"prefix {prefix!r} must have a scheme and end in a slash, as in s3://bucket/folder/")
        return prefixes

    def quota_of(self, tenant: str) -> Quota:
        """Limits of a tenant."""
        return self.quotas.get(tenant, self.quota)


def load_settings(
    file: Path | None = None, changes: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> ServiceSettings:
    """The settings of a process.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: names every wrong field.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        try:
            text = file.read_text("utf-8")
            tree = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        except FileNotFoundError:
            raise NotFoundError(f"there is no settings file {file}") from None
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"settings file {file} cannot be read: {error}") from None
        if not isinstance(tree, dict):
            raise InvalidInputError(f"settings file {file} must hold an object with a field for each setting")
    for name, text in sorted(_given(os.environ if environment is None else environment).items()):
        here = tree
        *parents, last = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        for parent in parents:
            here = here.setdefault(parent, {})
            if not isinstance(here, dict):
                raise InvalidInputError(f"{name}: {parent} has no fields of its own; check the spelling")
        here[last] = [url.strip() for url in text.split(",") if url.strip()] if last == "allowed_urls" else text
    tree |= {name: value for name, value in (changes or {}).items() if value is not None}
    try:
        return ServiceSettings.model_validate(tree)
    except ValidationError as error:
        raise InvalidInputError("settings: " + explain(error)) from None


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that set something, those with the name of a file replaced by what it holds."""
    given: dict[str, str] = {}
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        setting = name.removesuffix(FILE_SUFFIX)
        if setting != name:
            if setting in environment:
                raise InvalidInputError(f"{setting} and {name} are both set; leave one out")
            try:
                text = Path(text).read_text("utf-8").strip()
            except (OSError, ValueError) as error:
                raise InvalidInputError(f"{name} names {text}, which cannot be read: {error}") from None
        given[setting] = text
    return given


def open_ledger(store: str) -> Ledger:
    """The ledger that `store` names.

    Raises:
        InvalidInputError: no such kind of store.
        UnavailableError: it does not answer.
    """
    kind, _, rest = store.partition(":")
    if kind == "sqlite" and rest:
        from coordinator.store.sqlite import SqliteLedger

        return SqliteLedger(Path(rest).expanduser())
    if kind in ("redis", "rediss", "unix"):
        try:
            from coordinator.store.redis import RedisLedger
        except ImportError as error:
            raise UnavailableError(f"store {kind} needs the package redis: {error}") from None
        return RedisLedger(store)
    raise InvalidInputError(f"store must be sqlite:PATH or redis://HOST:PORT/DB, got {store!r}")
