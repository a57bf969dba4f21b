"""What it costs a gateway to count and time a call, and to tell Prometheus; without network and without the call."""

import asyncio

import grpc
from prometheus_client import generate_latest
from reporting import arguments, console, finish, interleaved, spread

from coordinator.api.exporter import PrometheusMetrics
from coordinator.api.rpc_metrics import RpcMetrics

CALLS = 2000


class Details:
    """Of a call, as gRPC hands them to interceptors."""

    method = "/metasearch.v1.SearchService/GetJob"


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    recorder = PrometheusMetrics()
    clock = asyncio.new_event_loop()
    interceptor = RpcMetrics(recorder, clock.time)

    async def method(request: bytes, context: object) -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(method)

    async def found(details: object) -> grpc.RpcMethodHandler:
        return handler

    async def plain() -> None:
        for _ in range(CALLS):
            await (await found(Details())).unary_unary(b"", None)

    async def measured() -> None:
        for _ in range(CALLS):
            await (await interceptor.intercept_service(found, Details())).unary_unary(b"", None)

    seconds = interleaved(
        {"plain": lambda: clock.run_until_complete(plain()), "measured": lambda: clock.run_until_complete(measured())},
        options.repeats,
    )
    scrape = interleaved({"scrape": lambda: generate_latest(recorder.registry)}, options.repeats)["scrape"]
    call_us = spread((seconds["measured"] - seconds["plain"]) / CALLS * 1e6)
    scrape_ms = spread(scrape * 1e3)
    console.print(f"a call: {call_us['median']:.1f} µs more; a scrape: {scrape_ms['median']:.1f} ms")
    clock.close()
    finish({"call_us": call_us, "scrape_ms": scrape_ms}, {}, options.json)


if __name__ == "__main__":
    main()
