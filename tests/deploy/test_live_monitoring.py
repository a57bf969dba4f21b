"""A real Prometheus watches a real service: every panel and every alert has data, health is quiet, and a coordinator
that is gone is noticed."""

import json
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaos.deployment import NUM_WORKERS, TENANT, Deployment
from PIL import Image
from reference.kept import wait_until
from reference.monitoring import DEPLOY, alerts, compared, known_series, panel_queries
from reference.ports import free_ports
from reference.processes import WORKER
from reference.prometheus_server import PrometheusServer, require_prometheus
from reference.redis_server import require_redis

from common.errors import NotFoundError, UnauthenticatedError
from common.telemetry import METRICS
from coordinator.api.client import SearchClient
from coordinator.api.stubs import search_pb2 as pb

pytestmark = [pytest.mark.deploy, pytest.mark.ray, pytest.mark.timeout(1500)]

START_TIMEOUT_S = 300.0
DATA_TIMEOUT_S = 180.0
ALERT_TIMEOUT_S = 300.0
SMALL = ["network.channels=2", "inner.steps=2", "families.0.tasks_per_round=2"]
GPU = ("ray_node_gpus_utilization", "ray_node_gram_used")
"""Asked for by lines that are only there where a node has a GPU."""


class GrafanaHealth(BaseHTTPRequestHandler):
    """The one answer of Grafana that Ray asks for. Grafana itself is not here, so nothing is drawn."""

    def do_GET(self) -> None:
        assert self.path == "/api/health"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps({"database": "ok"}).encode())

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def grafana() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), GrafanaHealth)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def prometheus_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def deployment(shared_image_cache: Path, grafana: str, prometheus_port: int) -> Iterator[Deployment]:
    """With the environment of deploy/grafana/ray-head.env, but for the addresses."""
    require_prometheus()
    require_redis()
    lines = (DEPLOY / "grafana" / "ray-head.env").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    environment |= {"RAY_GRAFANA_HOST": grafana, "RAY_PROMETHEUS_HOST": f"http://127.0.0.1:{prometheus_port}"}
    deployment = Deployment(environment)
    try:
        deployment.start(START_TIMEOUT_S)
        yield deployment
    except TimeoutError:
        print(deployment.logs())
        raise
    finally:
        deployment.close()


@pytest.fixture(scope="module")
def prometheus(
    deployment: Deployment, prometheus_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    folder = tmp_path_factory.mktemp("monitoring") / "prometheus"
    wait_until(deployment.metrics_file.exists, 60)
    server = PrometheusServer(folder, prometheus_port, deployment.metrics_file, deployment.gateway_metrics)
    yield server
    server.close()


@pytest.fixture(scope="module")
def worked(deployment: Deployment, prometheus: PrometheusServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The service has done a little of everything under Prometheus's eyes, and lost a worker."""
    wait_until(lambda: set(prometheus.targets().get("ray", [])) == {"up"}, 60)
    wait_until(lambda: prometheus.targets()["metasearch-gateway"] == ["up", "up"], 60)
    photos = tmp_path_factory.mktemp("photos")
    for name, shade in (("ants", 40), ("bees", 200)):
        (photos / name).mkdir()
        for number in range(12):
            Image.fromarray(np.full((16, 16, 3), shade + number, np.uint8)).save(photos / name / f"{number}.png")
    with deployment.client() as client:
        client.create_study("mine", "smoke", overrides=SMALL)
        client.create_study("handfuls", "few_shot_smoke", overrides=["network.channels=2"])
        jobs = [
            client.meta_train("studies/mine", 3),
            client.meta_train("studies/handfuls", 1),
            client.submit("studies/mine", photos, steps=3),
            client.submit("studies/mine", "digits", steps=3, train_per_class=5000),  # more than there are
            client.few_shot("studies/handfuls", photos, [photos / "ants" / "0.png"]),
        ]
        with pytest.raises(NotFoundError):
            client.get_job("studies/mine/jobs/none")
        with (
            SearchClient(f"127.0.0.1:{deployment.gateway_ports[0]}", "msk_wrong") as stranger,
            pytest.raises(UnauthenticatedError),
        ):
            list(stranger.list_studies())
        long = client.submit("studies/mine", "digits", steps=400)
        wait_until(lambda: client.get_job(long.name).progress.done > 0, 120)
        for pid in deployment.pids(WORKER):
            os.kill(pid, signal.SIGKILL)
        ended = [client.wait(job.name) for job in (*jobs, long)]
    states = [job.state for job in ended]
    assert states.count(pb.JOB_STATE_FAILED) == 1 and states.count(pb.JOB_STATE_SUCCEEDED) == 5, states


def is_of_gpu(expr: str) -> bool:
    return any(name in expr for name in GPU)


def test_every_line_of_every_panel_has_data(worked: None, prometheus: PrometheusServer) -> None:
    asked = [each for each in panel_queries() if not is_of_gpu(each.expr)]
    missing = {each.where for each in asked}

    def nothing_is_missing() -> bool:
        nonlocal missing
        missing = {each.where for each in asked if not prometheus.query(each.expr)}
        return not missing

    try:
        wait_until(nothing_is_missing, DATA_TIMEOUT_S)
    except TimeoutError:
        pytest.fail(f"no data: {sorted(missing)}")


def test_everything_that_alerts_compare_has_data_and_none_fires_in_health(
    worked: None, prometheus: PrometheusServer
) -> None:
    sides = [(rule["alert"], side) for rule in alerts() for side in compared(rule["expr"])]
    missing = sides

    def nothing_is_missing() -> bool:
        nonlocal missing
        missing = [(name, side) for name, side in sides if not prometheus.query(side)]
        return not missing

    try:
        wait_until(nothing_is_missing, DATA_TIMEOUT_S)
    except TimeoutError:
        pytest.fail(f"no data: {missing}")
    assert not [name for name, state in prometheus.alerts().items() if state == "firing"]


def test_prometheus_knows_the_whole_catalogue_and_nothing_else_of_ours(
    worked: None, prometheus: PrometheusServer
) -> None:
    known = set(known_series())
    wait_until(lambda: known <= prometheus.names("(ray_)?metasearch_.+"), DATA_TIMEOUT_S)
    assert prometheus.names("(ray_)?metasearch_.+") == known


def test_figures_are_those_of_what_was_done(worked: None, deployment: Deployment, prometheus: PrometheusServer) -> None:
    def counted(expr: str, expected: float) -> None:
        wait_until(lambda: bool(prometheus.query(expr)) and prometheus.value(expr) == expected, DATA_TIMEOUT_S)

    study = f'tenant="{TENANT}", study="mine"'
    counted(f"max(ray_metasearch_prior_version{{{study}}})", 3)
    counted('max(metasearch_jobs_finished_total{state="succeeded"})', deployment.num_finished())
    counted('max(metasearch_jobs_finished_total{state="failed"})', 1)
    counted('sum(ray_metasearch_jobs_failed_total{reason="INVALID_INPUT"})', 1)
    counted("round(sum(ray_metasearch_jobs_failed_total))", 1)
    counted("sum(metasearch_queue_depth)", 0)
    counted('max(ray_metasearch_workers{state="running"})', NUM_WORKERS)
    counted("sum(ray_metasearch_round_seconds_count)", 4)
    assert prometheus.value("sum(ray_metasearch_workers_replaced_total)") >= 1
    assert prometheus.value('sum(ray_metasearch_retries_total{cause="worker_lost"})') >= 1
    assert prometheus.value("sum(ray_metasearch_worker_steps_total)") >= 400
    assert prometheus.value('sum(metasearch_rpcs_total{code="UNAUTHENTICATED"})') >= 1
    assert prometheus.value("sum(metasearch_upload_bytes_total)") > 0


def test_the_log_of_the_supervisor_says_where_ray_tells_its_metrics(
    worked: None, deployment: Deployment, prometheus: PrometheusServer
) -> None:
    (line,) = [line for line in deployment.log("supervisor").splitlines() if METRICS in line]
    (url,) = line.partition(METRICS)[2].split()
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert b"ray_metasearch_workers" in answer.read()


def test_the_metrics_view_of_the_ray_dashboard_shows_our_dashboard(
    worked: None, deployment: Deployment, prometheus: PrometheusServer
) -> None:
    def asked(path: str) -> Any:
        with urllib.request.urlopen(f"{deployment.dashboard_url}/api/{path}", timeout=20) as answer:
            return json.load(answer)

    found = asked("grafana_health")
    assert found["result"], found
    # The page embeds GRAFANA/d/UID, with the session, and the name of the data source.
    assert found["data"]["dashboardUids"]["default"] == "metasearch"
    assert found["data"]["grafanaHost"] == "http://localhost:3000"
    assert found["data"]["dashboardDatasource"] == "Prometheus"
    session = found["data"]["sessionName"]
    assert prometheus.query(f'ray_metasearch_workers{{SessionName="{session}"}}'), "the variable selects our lines"
    assert asked("prometheus_health")["result"]


def test_a_coordinator_that_is_gone_is_noticed_and_counters_go_on_after_it(
    worked: None, deployment: Deployment, prometheus: PrometheusServer
) -> None:
    finished = 'max(metasearch_jobs_finished_total{state="succeeded"})'
    started = 'ray_metasearch_jobs_started_total{kind="adapt"}'

    def processes() -> set[str]:
        """Coordinators that Ray tells of, those that are gone too."""
        return {sample["metric"]["WorkerId"] for sample in prometheus.query(started)}

    gone = processes()
    before, epoch = prometheus.value(finished), prometheus.value("max(metasearch_coordinator_epoch)")
    assert deployment.stop_gracefully("supervisor", 60) == 0
    alert = "MetasearchCoordinatorDown"
    wait_until(lambda: alert in prometheus.alerts(), ALERT_TIMEOUT_S)
    assert prometheus.value("max(rate(metasearch_coordinator_beats_total[2m]))") == 0
    with deployment.client() as client:
        waiting = client.submit("studies/mine", "digits", steps=2)
        wait_until(lambda: prometheus.value('max(metasearch_queue_depth{kind="adapt"})') == 1, 60)
        wait_until(lambda: prometheus.alerts().get(alert) == "firing", ALERT_TIMEOUT_S)
        deployment.start_process("supervisor")
        assert client.wait(waiting.name).state == pb.JOB_STATE_SUCCEEDED
    wait_until(lambda: alert not in prometheus.alerts(), 120)
    wait_until(lambda: prometheus.value(finished) == before + 1, 60)
    assert prometheus.value("max(metasearch_coordinator_epoch)") == epoch + 1
    # The new process counts from 0: what it did before Prometheus first saw it is in no rate, all that follows is.
    wait_until(lambda: bool(processes() - gone), 60)
    with deployment.client() as client:
        assert client.wait(client.submit("studies/mine", "digits", steps=2).name).state == pb.JOB_STATE_SUCCEEDED
    wait_until(lambda: prometheus.value(f"sum(increase({started}[2m]))") > 0.5, 60)
