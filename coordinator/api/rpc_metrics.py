"""Counts and times the gateway's calls, refused ones too."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from common.metrics import OPEN_STREAMS, OTHER, RPC_SECONDS, RPCS, MetricRecorder
from coordinator.api.gatekeeper import OPEN_METHODS, REQUIRED_ROLES

_METHODS = {path: path.rpartition("/")[2] for path in (*REQUIRED_ROLES, *OPEN_METHODS)}


class RpcMetrics(aio.ServerInterceptor):  # type: ignore[misc]
    """The first interceptor: whatever those behind it answer is counted, under the method's name and the status code.

    Streams have no latency: they last as long as their client likes. Methods that the gateway does not have share the
    name `OTHER`, so that nobody can make up labels.

    Args:
        recorder: takes the figures.
        now_s: a monotonic clock.
    """

    def __init__(self, recorder: MetricRecorder, now_s: Callable[[], float]) -> None:
        self._recorder = recorder
        self._now_s = now_s
        self._num_open: dict[str, int] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See `grpc.aio.ServerInterceptor`."""
        name = _METHODS.get(details.method, OTHER)
        handler = await continuation(details)
        if handler is None:  # gRPC answers by itself
            self._recorder.add(RPCS, method=name, code=grpc.StatusCode.UNIMPLEMENTED.name)
            return None
        if handler.response_streaming:
            return self._streaming(handler, name)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        is_unary = not handler.request_streaming

        async def answer(request: Any, context: Any) -> Any:
            start_s = self._now_s()
            if not is_unary:
                self._opened(name, 1)
            code = grpc.StatusCode.UNKNOWN
            try:
                response = await behaviour(request, context)
                code = grpc.StatusCode.OK
                return response
            except BaseException as error:
                code = _code(error, context)
                raise
            finally:
                self._recorder.add(RPCS, method=name, code=code.name)
                if is_unary:
                    self._recorder.observe(RPC_SECONDS, self._now_s() - start_s, method=name)
                else:
                    self._opened(name, -1)

        make = grpc.unary_unary_rpc_method_handler if is_unary else grpc.stream_unary_rpc_method_handler
        return make(answer, handler.request_deserializer, handler.response_serializer)

    def _streaming(self, handler: grpc.RpcMethodHandler, name: str) -> grpc.RpcMethodHandler:
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            self._opened(name, 1)
            code = grpc.StatusCode.CANCELLED  # a client that goes closes the generator
            try:
                async for response in behaviour(request, context):
                    yield response
                code = grpc.StatusCode.OK
            except BaseException as error:
                code = _code(error, context)
                raise
            finally:
                self._recorder.add(RPCS, method=name, code=code.name)
                self._opened(name, -1)

        make = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return make(answer, handler.request_deserializer, handler.response_serializer)

    def _opened(self, name: str, change: int) -> None:
        self._num_open[name] = self._num_open.get(name, 0) + change
        self._recorder.set(OPEN_STREAMS, self._num_open[name], method=name)


def _code(error: BaseException, context: Any) -> grpc.StatusCode:
    """The status that a call ends with which raised this. Deadlines of clients look like their cancelling."""
    if isinstance(error, aio.AbortError):
        return context.code()
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN
