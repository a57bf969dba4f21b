"""Who calls, and what they may: bearer tokens, stored hashed, each with a tenant and a role."""

import hashlib
import logging
import secrets
import threading
import time
import tomllib
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from common.config import Frozen, explain
from common.errors import InvalidInputError, NotFoundError, UnauthenticatedError
from common.storage import write_private

TENANT_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
TOKEN_PREFIX = "msk_"
_LOOK_EVERY_S = 1.0


class Role(IntEnum):
    """Each may all that the ones before it may."""

    VIEWER = 1
    SUBMITTER = 2
    ADMIN = 3


class TokenEntry(Frozen):
    """A token, as the tokens file holds it."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN)]
    role: Literal["viewer", "submitter", "admin"]
    title: str = ""


class _TokenFile(Frozen):
    token: tuple[TokenEntry, ...] = ()


class Caller(Frozen):
    """Whose call it is."""

    tenant: str
    role: Role


class Tokens:
    """The tokens of a file, which is read again when it changes. A file that cannot be read changes nothing.

    Args:
        file: TOML, `[[token]]` tables of `TokenEntry`.
        logger: hears of files that cannot be read.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: the file is not what it should be.
    """

    def __init__(self, file: Path, logger: logging.Logger) -> None:
        self._file = file
        self._logger = logger
        self._lock = threading.Lock()
        self._signature = self._look()
        self._callers = _callers(read_tokens(file))
        self._looked_s = time.monotonic()

    def caller_of(self, authorization: str | None) -> Caller:
        """The caller that an `authorization` header names.

        Raises:
            UnauthenticatedError: no token, or not one of ours.
        """
        if authorization is None:
            raise UnauthenticatedError(
                "no token; send `authorization: Bearer TOKEN`, `metasearch token create` makes one"
            )
        scheme, _, token = authorization.partition(" ")
        caller = self._present().get(_hash(token.strip())) if scheme.lower() == "bearer" else None
        if caller is None:
            raise UnauthenticatedError("the token is not known here; it may have been withdrawn")
        return caller

    def _present(self) -> Mapping[str, Caller]:
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s >= _LOOK_EVERY_S:
                self._looked_s = now_s
                signature = self._look()
                if signature != self._signature:
                    self._signature = signature
                    try:
                        self._callers = _callers(read_tokens(self._file))
                    except (InvalidInputError, NotFoundError) as error:
                        self._logger.error("%s; the tokens of before stay valid", error)
            return self._callers

    def _look(self) -> tuple[int, int, int] | None:
        try:
            stat = self._file.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def read_tokens(file: Path) -> tuple[TokenEntry, ...]:
    """The entries of a tokens file.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is not what it should be.
    """
    try:
        return _TokenFile.model_validate(tomllib.loads(file.read_text("utf-8"))).token
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no tokens file {file}; make one with `metasearch token create --tokens {file} --tenant NAME`"
        ) from None
    except ValidationError as error:
        raise InvalidInputError(f"tokens file {file}: {explain(error)}") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"tokens file {file} cannot be read: {error}") from None


def create_token(file: Path, tenant: str, role: str, title: str = "") -> str:
    """Adds a token to a file, which is made where missing; only its hash is stored.

    Returns:
        The token; it cannot be shown again.

    Raises:
        InvalidInputError: a wrong tenant or role, or a file that is not a tokens file.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    try:
        entry = TokenEntry.model_validate({"sha256": _hash(token), "tenant": tenant, "role": role, "title": title})
    except ValidationError as error:
        raise InvalidInputError(f"token: {explain(error)}") from None
    entries = [*read_tokens(file), entry] if file.exists() else [entry]
    tables = [
        "[[token]]\n" + "".join(f"{name} = {_toml(str(value))}\n" for name, value in entry.model_dump().items())
        for entry in entries
    ]
    write_private(file, "\n".join(tables).encode())
    return token


def _callers(entries: tuple[TokenEntry, ...]) -> dict[str, Caller]:
    return {entry.sha256: Caller(tenant=entry.tenant, role=Role[entry.role.upper()]) for entry in entries}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _toml(text: str) -> str:
    escaped = "".join(
        f"\\u{ord(letter):04x}" if ord(letter) < 32 or ord(letter) == 127 else letter
        for letter in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
