"""Fields of log lines, such as job, round and worker: set once around some work, and in every line that it logs."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

_fields: ContextVar[Mapping[str, object]] = ContextVar("log_fields", default={})  # noqa: B039 it is never changed


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Adds fields to all lines that are logged within the block, on this thread; those of None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    before = _fields.set({**_fields.get(), **known})
    try:
        yield
    finally:
        _fields.reset(before)


class FieldsFormatter(logging.Formatter):
    """A line per record: time, level, logger, message, then `name=value` for each field in force.

    Values with spaces, quotes or equals signs are quoted as JSON.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s%(fields)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        record.fields = "".join(f" {name}={_quoted(str(value))}" for name, value in _fields.get().items())
        return super().format(record)


def _quoted(value: str) -> str:
    return value if value and not any(letter in ' "=\n\t' for letter in value) else json.dumps(value)
