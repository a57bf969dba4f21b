"""What a gateway tells Prometheus: of its calls, and of what the job store holds."""

import asyncio
import logging
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from reference.gateway import Gateway, PlayedCoordinator, until

from common.errors import InvalidInputError, NotFoundError, UnauthenticatedError, UnavailableError
from common.metrics import GATEWAY_METRICS
from common.telemetry import METRICS
from coordinator.api.auth import create_token
from coordinator.api.client import SearchClient
from coordinator.api.exporter import ContentCollector, MetricsServer, PrometheusMetrics
from coordinator.api.gateway import serve
from coordinator.settings import ServiceSettings
from coordinator.store.overview import Overview, Waiting

Samples = dict[tuple[str, ...], float]


class Exporter:
    """The metrics of a gateway, read as Prometheus does."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        (line,) = [line for line in gateway.log.read_text().splitlines() if METRICS in line]
        self.url = line.partition(METRICS)[2].strip()

    def text(self) -> str:
        with urllib.request.urlopen(self.url, timeout=10) as answer:
            return str(answer.read().decode())

    def samples(self) -> Samples:
        """By name and label values, in the order of the labels' names."""
        found: Samples = {}
        for family in text_string_to_metric_families(self.text()):
            for sample in family.samples:
                found[(sample.name, *(sample.labels[label] for label in sorted(sample.labels)))] = sample.value
        return found

    def until(self, condition: Callable[[Samples], Any], what: str) -> Any:
        return until(lambda: condition(self.samples()), what)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    gateway = Gateway(tmp_path_factory.mktemp("measured"), metrics_listen="127.0.0.1:0", drain_s=2.0)
    gateway.add_tokens(["catalogue", "counted", "watcher", "uploader", "owner"])
    gateway.start()
    yield Exporter(gateway)
    gateway.stop()


def test_the_gateway_exports_the_catalogue_and_nothing_else_of_ours(measured: Exporter) -> None:
    with measured.gateway.client("catalogue") as client:
        list(client.list_studies())
        with pytest.raises(NotFoundError):
            list(client.watch("studies/none/jobs/none"))
    measured.until(lambda found: ("metasearch_coordinator_epoch",) in found, "a look at the store")
    families = {family.name: family for family in text_string_to_metric_families(measured.text())}
    ours = {name for name in families if name.startswith("metasearch_")}
    # The parser takes `_total` off the names of counters.
    assert ours == {metric.exported_name.removesuffix("_total") for metric in GATEWAY_METRICS}
    for metric in GATEWAY_METRICS:
        family = families[metric.exported_name.removesuffix("_total")]
        assert (family.type, family.documentation) == (str(metric.kind), metric.description)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)


def test_calls_are_counted_by_method_and_code_refused_and_unknown_ones_too(measured: Exporter) -> None:
    gateway = measured.gateway
    before = measured.samples()
    with gateway.client("counted") as client:
        list(client.list_studies())
        with pytest.raises(NotFoundError):
            client.get_job("studies/none/jobs/none")
    with SearchClient(gateway.address, "msk_wrong") as stranger, pytest.raises(UnauthenticatedError):
        list(stranger.list_studies())
    with grpc.insecure_channel(gateway.address) as channel:
        for method in ("/metasearch.v1.SearchService/Invented", "/other.Service/Invented"):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(method)(b"", timeout=10)
    after = measured.samples()

    def counted(code: str, method: str) -> float:
        key = ("metasearch_rpcs_total", code, method)
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert counted("OK", "ListStudies") == 1
    assert counted("NOT_FOUND", "GetJob") == 1
    assert counted("UNAUTHENTICATED", "ListStudies") == 1
    assert sum(counted(code, "other") for code in ("UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED")) == 2
    assert (
        after["metasearch_rpc_seconds_count", "GetJob"] - before.get(("metasearch_rpc_seconds_count", "GetJob"), 0) == 1
    )
    assert not any("Invented" in part for key in after for part in key)


def test_a_watch_is_open_while_it_lasts_and_counted_when_its_client_goes(measured: Exporter) -> None:
    gateway = measured.gateway
    with gateway.client("watcher") as client:
        client.create_study("mine", preset="smoke")
        job = client.meta_train("studies/mine")
        before = measured.samples().get(("metasearch_rpcs_total", "CANCELLED", "WatchJob"), 0.0)
        updates = iter(client.watch(job.name))
        next(updates)
        assert measured.samples()["metasearch_open_streams", "WatchJob"] == 1
    measured.until(lambda found: found["metasearch_open_streams", "WatchJob"] == 0, "the watch to end")
    found = measured.samples()
    assert found["metasearch_rpcs_total", "CANCELLED", "WatchJob"] - before == 1
    assert ("metasearch_rpc_seconds_count", "WatchJob") not in found, "a watch lasts as long as its job"


def test_received_bytes_are_counted(measured: Exporter, photos: Path) -> None:
    before = measured.samples()["metasearch_upload_bytes_total",]
    with measured.gateway.client("uploader") as client:
        uploaded = client.upload(photos)
    assert measured.samples()["metasearch_upload_bytes_total",] - before == uploaded.num_bytes


def test_what_the_store_holds_is_told_whoever_changed_it(measured: Exporter) -> None:
    gateway = measured.gateway
    with gateway.client("owner") as client:
        client.create_study("mine", preset="smoke")
        jobs = [client.meta_train("studies/mine") for _ in range(3)]
    played = PlayedCoordinator(gateway)
    try:
        before = measured.samples()
        played.store.beat(played.epoch, {})
        played.first_prior("owner", "mine")
        played.fail(played.start("owner", jobs[0].name))
        played.start("owner", jobs[1].name)
        failed = ("metasearch_jobs_finished_total", "failed")
        measured.until(lambda found: found[failed] == before.get(failed, 0.0) + 1, "a look at the store")
        found = measured.samples()
    finally:
        played.close()
    assert found["metasearch_jobs", "running"] == 1
    assert found["metasearch_queue_depth", "meta_train"] >= 1
    assert found["metasearch_queue_depth", "sweep"] == 0
    assert found["metasearch_queue_age_seconds", "meta_train"] > 0
    assert found["metasearch_coordinator_epoch",] == played.epoch
    assert found["metasearch_coordinator_beats_total",] >= 1
    assert found["metasearch_store_up",] == 1
    assert found["metasearch_draining",] == 0
    assert found["metasearch_store_seconds_count", "commit"] > 0


def test_nothing_is_measured_where_nobody_is_told(gateway: Gateway) -> None:
    assert METRICS not in gateway.log.read_text()


# Mistakes


def settings_of(folder: Path, **changes: Any) -> ServiceSettings:
    create_token(folder / "tokens.toml", "a", "viewer")
    plain = {
        "listen": "127.0.0.1:0",
        "tokens": folder / "tokens.toml",
        "store": f"sqlite:{folder / 'jobs.sqlite'}",
        "artifacts": str(folder / "artifacts"),
    }
    return ServiceSettings(**(plain | changes))


def refusal(settings: ServiceSettings, kind: type[Exception]) -> str:
    async def run() -> None:
        stop = asyncio.Event()
        await serve(settings, logging.getLogger("test"), lambda port: stop.set(), stop)

    with pytest.raises(kind) as caught:
        asyncio.run(run())
    return str(caught.value)


def test_a_port_that_is_taken_keeps_the_gateway_from_serving_and_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refusal(settings_of(tmp_path, metrics_listen=listen), UnavailableError)
    assert message.startswith(f"cannot listen on metrics_listen {listen}: ")
    assert "choose another port, or leave metrics_listen empty" in message
    assert not (tmp_path / "jobs.sqlite").exists(), "nothing was served before"


@pytest.mark.parametrize("listen", ["9464", ":9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_mistake_of_the_settings(tmp_path: Path, listen: str) -> None:
    message = refusal(settings_of(tmp_path, metrics_listen=listen), InvalidInputError)
    assert message == f"metrics_listen must be HOST:PORT, got {listen!r}; 127.0.0.1:9464 for example"


def test_a_name_that_stands_for_no_address_cannot_be_listened_on() -> None:
    with pytest.raises(UnavailableError, match="cannot listen on metrics_listen none.invalid:0"):
        MetricsServer("none.invalid:0", PrometheusMetrics().registry)


def test_the_exporter_needs_neither_torch_nor_ray() -> None:
    code = "import sys, coordinator.api.gateway; print([name for name in ('torch', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# By themselves


def test_content_is_not_told_before_the_first_look_and_ages_grow_from_then_on() -> None:
    now_s = 1000.0
    collector = ContentCollector(lambda: now_s)
    assert list(collector.collect()) == []
    waiting = {"adapt": Waiting(2, 940.0), "unknown": Waiting(1, None), "sweep": Waiting(1, 2000.0)}
    collector.latest = Overview(waiting, 5, 3, {"succeeded": 7}, 11, 2)
    for later_s in (0.0, 30.0):
        now_s = 1000.0 + later_s
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in collector.collect()
            for sample in family.samples
        }
        assert found["metasearch_queue_age_seconds", "adapt"] == 60.0 + later_s
    assert found["metasearch_queue_age_seconds", "sweep"] == 0.0, "submitted by a clock that goes ahead"
    assert found["metasearch_queue_depth", "unknown"] == 1
    assert found["metasearch_jobs", "queued"] == 4
    assert found["metasearch_jobs", "paused"] == 5
    assert found["metasearch_jobs_finished_total", "succeeded"] == 7
    assert found["metasearch_coordinator_beats_total",] == 11
