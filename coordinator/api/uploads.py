"""Receiving what is uploaded. Raises `FieldError`, which names the field; `UnavailableError` when nothing comes."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from pathlib import Path

from common.errors import UnavailableError
from common.metrics import UPLOAD_BYTES, MetricRecorder
from coordinator.api import names
from coordinator.api.errors import FieldError
from coordinator.api.stubs import search_pb2 as pb
from workers.data.sources import FILE_SUFFIXES

CHUNK_BYTES = 1 << 20


class Parts:
    """The messages of an upload. A client that falls silent does not hold a stream and a file for ever.

    Args:
        requests: of the call.
        idle_s: how long to wait for each.
    """

    def __init__(self, requests: AsyncIterator[pb.UploadDatasetRequest], idle_s: float) -> None:
        self._requests = aiter(requests)
        self._idle_s = idle_s

    async def next(self) -> pb.UploadDatasetRequest | None:
        """The next message, None at the end."""
        try:
            async with asyncio.timeout(self._idle_s):
                return await anext(self._requests, None)
        except TimeoutError:
            raise UnavailableError(f"nothing of the upload came for {self._idle_s:g} s; send it again") from None


async def read_header(parts: Parts, max_bytes: int) -> pb.UploadHeader:
    """What comes before the content."""
    first = await parts.next()
    if first is None or first.WhichOneof("part") != "header":
        raise FieldError("header", "must come first")
    header = first.header
    if header.suffix not in FILE_SUFFIXES:
        raise FieldError("header.suffix", f"must be one of {', '.join(FILE_SUFFIXES)}, got {header.suffix[:20]!r}")
    if not 0 < header.num_bytes <= max_bytes:
        raise FieldError("header.num_bytes", f"must be from 1 to {max_bytes}, got {header.num_bytes}")
    names.dataset_id(f"datasets/{header.sha256}", "header.sha256")
    return header


async def receive(
    parts: Parts, header: pb.UploadHeader, path: Path, executor: Executor, recorder: MetricRecorder
) -> None:
    """Writes what is uploaded to a file, and checks it against its header."""
    loop = asyncio.get_running_loop()
    hasher = hashlib.sha256()
    received = 0
    with path.open("wb") as file:
        while (request := await parts.next()) is not None:
            if request.WhichOneof("part") != "chunk":
                raise FieldError("part", "after the header come chunks only")
            received += len(request.chunk)
            recorder.add(UPLOAD_BYTES, len(request.chunk))
            if len(request.chunk) > CHUNK_BYTES:
                raise FieldError("chunk", f"has {len(request.chunk)} bytes, at most {CHUNK_BYTES} go at once")
            if received > header.num_bytes:
                raise FieldError("header.num_bytes", f"says {header.num_bytes}, more came")
            hasher.update(request.chunk)
            await loop.run_in_executor(executor, file.write, request.chunk)
    if received != header.num_bytes:
        raise FieldError("header.num_bytes", f"says {header.num_bytes}, {received} came")
    if hasher.hexdigest() != header.sha256:
        raise FieldError("header.sha256", f"says {header.sha256}, what came has {hasher.hexdigest()}")
