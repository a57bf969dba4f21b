"""The gateway process: serves the protocol, health and reflection; drains on SIGTERM. Imports neither Ray nor torch."""

import asyncio
import contextlib
import logging
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from common.errors import InvalidInputError, UnavailableError
from common.metrics import DRAINING, STORE_UP, MetricRecorder, NothingRecorded
from common.storage import ArtifactFolder
from common.telemetry import METRICS
from coordinator.api.auth import Tokens
from coordinator.api.exporter import ContentCollector, MetricsServer, PrometheusMetrics
from coordinator.api.gatekeeper import SERVICE, Gatekeeper
from coordinator.api.probes import check_address, start_probes
from coordinator.api.rpc_metrics import RpcMetrics
from coordinator.api.server import SearchServicer
from coordinator.api.stubs import search_pb2_grpc
from coordinator.settings import ServiceSettings, TlsSettings, open_ledger
from coordinator.store.jobs import JobStore
from coordinator.store.metered import MeteredLedger
from coordinator.store.overview import overview

MAX_MESSAGE_BYTES = 4 << 20
_HEALTH_EVERY_S = 1.0
_LOOK_S = 0.05
_LAST_WORDS_S = 0.5
_LOOK_AT_STORE_S = 5.0
_REST_AFTER_LOOK = 20  # times as long as it took: at most a twentieth of a processor counts jobs
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.so_reuseport", 0),  # a second gateway on the same port is a mistake, not a load balancer
)
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


async def serve(
    settings: ServiceSettings, logger: logging.Logger, on_ready: Callable[[int], None], stop: asyncio.Event
) -> None:
    """Serves until `stop` is set, then drains: refuses new calls, ends watches with a resume token, waits for the rest.

    Args:
        settings: of the service.
        logger: of the process.
        on_ready: called with the port once it answers.
        stop: ends it.

    Raises:
        InvalidInputError: TLS is missing off the loopback, or a certificate cannot be read.
        NotFoundError: there is no tokens file.
        UnavailableError: the store or a port cannot be had.
    """
    credentials = _credentials(settings, check_address("listen", settings.listen))
    tokens = Tokens(settings.tokens, logger)
    artifacts = ArtifactFolder(settings.artifacts)
    with contextlib.ExitStack() as stack:
        measures = stack.enter_context(_measuring(settings, logger))
        ledger = MeteredLedger(open_ledger(settings.store), measures.recorder, time.monotonic)
        stack.callback(ledger.close)
        store = JobStore(ledger)
        servicer = SearchServicer(store, artifacts, settings, logger, measures.recorder)
        server = aio.server(interceptors=(*measures.interceptors, Gatekeeper(tokens)), options=_OPTIONS)
        search_pb2_grpc.add_SearchServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        try:
            if credentials is None:
                port = server.add_insecure_port(settings.listen)
            else:
                port = server.add_secure_port(settings.listen, credentials)
        except RuntimeError as error:
            raise UnavailableError(f"cannot listen on {settings.listen}: {str(error).splitlines()[0]}") from None
        probes = await start_probes(settings.health_listen, health_servicer) if settings.health_listen else None
        await server.start()
        watches = [asyncio.create_task(_watch_health(store, health_servicer, measures.recorder, logger))]
        if measures.content is not None:
            watches.append(asyncio.create_task(_watch_content(store, measures.content)))
        try:
            on_ready(port)
            await stop.wait()
            logger.info("draining: no new calls, at most %.0f s for the rest", settings.drain_s)
            measures.recorder.set(DRAINING, 1)
            _cancel(watches)
            await _set_health(health_servicer, serving=False)
            servicer.stop_watches()
            stopping = asyncio.create_task(server.stop(settings.drain_s))
            while servicer.num_open and not stopping.done():
                await asyncio.sleep(_LOOK_S)
            # What is still open then are watches of health, which would go on for ever.
            await server.stop(_LAST_WORDS_S)
            await stopping
        finally:
            # Whatever ended it: a server that runs on keeps the process from ending.
            _cancel(watches)
            await server.stop(None)
            if probes is not None:
                await probes.stop(None)
            await servicer.close()


@dataclass(frozen=True)
class _Measures:
    """Who measures: nobody, where no one is told."""

    recorder: MetricRecorder
    interceptors: tuple[RpcMetrics, ...] = ()
    content: ContentCollector | None = None


@contextlib.contextmanager
def _measuring(settings: ServiceSettings, logger: logging.Logger) -> Iterator[_Measures]:
    """Metrics, and the port that tells them, as long as this lasts."""
    if not settings.metrics_listen:
        yield _Measures(NothingRecorded())
        return
    recorder, content = PrometheusMetrics(), ContentCollector(time.time)
    recorder.registry.register(content)
    with contextlib.closing(MetricsServer(settings.metrics_listen, recorder.registry)) as server:
        logger.info("%s %s", METRICS, server.url)
        yield _Measures(recorder, (RpcMetrics(recorder, time.monotonic),), content)


def run_gateway(settings: ServiceSettings, logger: logging.Logger, on_ready: Callable[[int], None]) -> None:
    """`serve` until SIGTERM or SIGINT. See there for what it raises."""

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(settings, logger, on_ready, stop)

    asyncio.run(main())


def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _watch_content(store: JobStore, content: ContentCollector) -> None:
    """Counts what the store holds, now and then; while it does not answer, the last counts stand."""
    while True:
        start_s = time.monotonic()
        with contextlib.suppress(UnavailableError):
            content.latest = await asyncio.to_thread(overview, store)
        await asyncio.sleep(max(_LOOK_AT_STORE_S, _REST_AFTER_LOOK * (time.monotonic() - start_s)))


async def _watch_health(
    store: JobStore, servicer: health.aio.HealthServicer, recorder: MetricRecorder, logger: logging.Logger
) -> None:
    """NOT_SERVING while the store does not answer."""
    was_serving: bool | None = None
    while True:
        try:
            await asyncio.to_thread(store.ledger.ping)
            serving = True
        except UnavailableError as error:
            serving = False
            if was_serving is not False:
                logger.error("not serving: %s", error)
        recorder.set(STORE_UP, float(serving))
        if serving and was_serving is False:
            logger.info("serving again")
        if serving is not was_serving:
            await _set_health(servicer, serving)
        was_serving = serving
        await asyncio.sleep(_HEALTH_EVERY_S)


async def _set_health(servicer: health.aio.HealthServicer, serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", SERVICE):
        await servicer.set(name, status)


def _credentials(settings: ServiceSettings, host: str) -> grpc.ServerCredentials | None:
    tls = settings.tls
    if tls.certificate is None or tls.key is None:
        if tls.certificate or tls.key or tls.client_ca:
            raise InvalidInputError("tls needs both certificate and key")
        if host not in LOOPBACK and not settings.insecure:
            raise InvalidInputError(
                f"listen {settings.listen!r} is beyond the loopback: set tls.certificate and tls.key, or "
                "insecure = true where something in front of the gateway ends TLS"
            )
        return None
    reloader = _CertificateReloader(tls)
    return grpc.dynamic_ssl_server_credentials(
        reloader.first, reloader.changed, require_client_authentication=tls.client_ca is not None
    )


class _CertificateReloader:
    """Reads the certificate again when its files have changed. Files that do not fit together change nothing."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._files = self._read()
        self.first = _configuration(self._files)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC for every new connection; None keeps the present one."""
        with self._lock:
            with contextlib.suppress(InvalidInputError):
                files = self._read()
                if files != self._files:
                    self._files = files
                    return _configuration(files)
            return None

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        assert self._tls.certificate is not None and self._tls.key is not None
        try:
            # Checks that key and certificate belong together.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._tls.certificate, self._tls.key, password=lambda: b"")  # asks nobody
            ca = self._tls.client_ca.read_bytes() if self._tls.client_ca else None
            if ca is not None:
                context.load_verify_locations(cadata=ca.decode("ascii", errors="replace"))
            return self._tls.key.read_bytes(), self._tls.certificate.read_bytes(), ca
        except (OSError, ssl.SSLError, ValueError) as error:
            raise InvalidInputError(f"tls: {_named(self._tls)} cannot be used: {error}") from None


def _configuration(files: tuple[bytes, bytes, bytes | None]) -> grpc.ServerCertificateConfiguration:
    key, certificate, ca = files
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)


def _named(tls: TlsSettings) -> str:
    return ", ".join(str(path) for path in (tls.certificate, tls.key, tls.client_ca) if isinstance(path, Path))
