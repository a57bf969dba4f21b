"""Who may call what, and how a call is answered: roles, refusals, and what becomes of errors."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from logging import Logger
from typing import Any, Protocol, TypeVar

import grpc
from grpc import aio

from common.errors import ForbiddenError, MetaSearchError
from coordinator.api.auth import Caller, Role, Tokens
from coordinator.api.errors import DETAILS_KEY, grpc_code, to_status

SERVICE = "metasearch.v1.SearchService"
_READ = ("GetStudy", "ListStudies", "GetJob", "ListJobs", "WatchJob", "GetPrior", "ListPriors", "GetDataset")
_READ_TOO = ("ListDatasets", "DownloadArtifact", "GetServiceStatus")
_WRITE = ("CreateJob", "CancelJob", "PauseJob", "ResumeJob", "UploadDataset", "CreateStudy")
REQUIRED_ROLES: Mapping[str, Role] = {
    **{f"/{SERVICE}/{name}": Role.VIEWER for name in (*_READ, *_READ_TOO)},
    **{f"/{SERVICE}/{name}": Role.SUBMITTER for name in _WRITE},
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Role.VIEWER,
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Role.VIEWER,
}
"""A method that is not listed here is refused."""
OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""For load balancers and probes, which have no token."""

_FAILED = "the service failed; its log says why"

_caller: ContextVar[Caller] = ContextVar("caller")


class Servicer(Protocol):
    """What has the methods.

    Attributes:
        logger: hears of what users cannot repair.
        num_open: calls under way.
    """

    logger: Logger
    num_open: int


_S = TypeVar("_S", bound=Servicer)
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Gatekeeper(aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through if its token's role allows it; everything else is refused."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See `grpc.aio.ServerInterceptor`."""
        if details.method in OPEN_METHODS:
            return await continuation(details)
        try:
            metadata = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}
            caller = self._tokens.caller_of(metadata.get("authorization"))
            needed = REQUIRED_ROLES.get(details.method)
            if needed is None or caller.role < needed:
                role = "no role" if needed is None else f"role {needed.name.lower()}"
                raise ForbiddenError(f"{details.method} takes {role}; the token has {caller.role.name.lower()}")
        except MetaSearchError as error:
            return _refusal(await continuation(details), error)
        _caller.set(caller)
        return await continuation(details)


def _refusal(handler: grpc.RpcMethodHandler | None, error: MetaSearchError) -> grpc.RpcMethodHandler | None:
    """A handler of the same kind that fails."""
    if handler is None:
        return None  # gRPC answers UNIMPLEMENTED

    async def refuse(request: Any, context: Any) -> None:
        await abort(context, error)

    async def refuse_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await abort(context, error)
        yield  # makes it a stream

    if handler.request_streaming:
        return (
            grpc.stream_stream_rpc_method_handler(refuse_stream)
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler(refuse)
        )
    return (
        grpc.unary_stream_rpc_method_handler(refuse_stream)
        if handler.response_streaming
        else grpc.unary_unary_rpc_method_handler(refuse)
    )


async def abort(context: Any, error: MetaSearchError) -> None:
    """Ends a call with the status of an error."""
    status = to_status(error)
    await context.abort(grpc_code(status), status.message, ((DETAILS_KEY, status.SerializeToString()),))


@asynccontextmanager
async def _answering(servicer: Servicer, context: Any) -> AsyncIterator[None]:
    """A call under way: errors of ours become its status, all others a line in the log and INTERNAL."""
    servicer.num_open += 1
    try:
        yield
    except MetaSearchError as error:
        await abort(context, error)
    except (aio.AbortError, asyncio.CancelledError):
        raise
    except Exception:
        servicer.logger.exception("a call failed")
        await abort(context, MetaSearchError(_FAILED))
    finally:
        servicer.num_open -= 1


def answers(
    method: Callable[[_S, _Request, str], Awaitable[_Response]],
) -> Callable[[_S, _Request, Any], Awaitable[_Response]]:
    """Makes a gRPC method of one that takes a request and the caller's tenant, and may raise any error."""

    @functools.wraps(method)
    async def answer(self: _S, request: _Request, context: Any) -> _Response:
        async with _answering(self, context):
            return await method(self, request, _caller.get().tenant)

    return answer


def answers_stream(
    method: Callable[[_S, _Request, str], AsyncIterator[_Response]],
) -> Callable[[_S, _Request, Any], AsyncIterator[_Response]]:
    """`answers` for a method that streams its responses."""

    @functools.wraps(method)
    async def answer(self: _S, request: _Request, context: Any) -> AsyncIterator[_Response]:
        async with _answering(self, context):
            async for response in method(self, request, _caller.get().tenant):
                yield response

    return answer
