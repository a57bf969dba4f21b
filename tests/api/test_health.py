"""`metasearch health`: exit status 0 for what is well, 1 for all else, as containers understand it."""

import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from reference.certificates import Authority, write_pair
from reference.gateway import Gateway, running
from reference.processes import Run, command_line

from coordinator.settings import open_ledger
from coordinator.store.jobs import JobStore

NOBODY = "127.0.0.1:1"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


def test_gateway_that_serves_is_well_and_no_token_is_asked_for(run: Run, gateway: Gateway) -> None:
    code, said, complaint = run("health", "gateway", "--server", gateway.address)
    assert (code, complaint) == (0, "") and gateway.address in said


def test_gateway_that_nobody_runs_is_not_well(run: Run) -> None:
    code, said, complaint = run("health", "gateway", "--server", NOBODY)
    assert (code, said) == (1, "")
    assert NOBODY in complaint and "does not answer: UNAVAILABLE" in complaint


def test_gateway_that_takes_its_time_is_not_well(run: Run) -> None:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_insecure_port("127.0.0.1:0")  # bound, but it never answers: it is not started
        code, _, complaint = run("health", "gateway", "--server", f"127.0.0.1:{port}", "--timeout", "0.2")
        server.stop(None)
    assert code == 1 and "DEADLINE_EXCEEDED" in complaint


def test_gateway_that_says_it_does_not_serve_is_not_well(run: Run) -> None:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        servicer = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        code, said, complaint = run("health", "gateway", "--server", f"127.0.0.1:{port}")
        server.stop(None).wait()
    assert (code, said) == (1, "") and "NOT_SERVING" in complaint


def test_gateway_behind_tls_is_asked_by_its_name_with_a_certificate(run: Run, tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")
    ca, other_ca = tmp_path / "ca.pem", tmp_path / "other.pem"
    ca.write_bytes(ours.pem)
    other_ca.write_bytes(theirs.pem)
    own = write_pair(tmp_path / "client", ours.issue("client"))
    tls = write_pair(tmp_path / "tls", ours.issue("server")) | {"client_ca": str(ca)}
    identity = ("--certificate", own["certificate"], "--key", own["key"])
    with running(tmp_path / "gateway", tls=tls, drain_s=1.0) as gateway:
        asked = ("health", "gateway", "--server", gateway.address)
        assert run(*asked, "--ca", str(ca), *identity)[0] == 0
        assert run(*asked, "--ca", str(ca), *identity, "--server-name", "localhost")[0] == 0
        assert run(*asked, "--ca", str(ca), *identity, "--server-name", "example.org")[0] == 1
        assert run(*asked, "--ca", str(other_ca), *identity)[0] == 1, "signed by somebody else"
        assert run(*asked, "--ca", str(ca))[0] == 1, "the gateway wants a certificate"
        assert run(*asked)[0] == 1, "plain text"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--ca", "/none.pem"), "/none.pem cannot be read"),
        (("--server-name", "localhost"), "need --ca"),
        (("--ca", "/none.pem", "--certificate", "/own.pem"), "--certificate and --key go together"),
    ],
)
def test_gateway_asked_wrongly_counts_as_not_well(run: Run, options: tuple[str, ...], words: str) -> None:
    code, _, complaint = run("health", "gateway", "--server", NOBODY, *options)
    assert code == 1 and words in complaint


def test_coordinator_is_well_as_long_as_its_beats_count_up(run: Run, tmp_path: Path) -> None:
    name = f"sqlite:{tmp_path / 'jobs.sqlite'}"
    asked = ("health", "coordinator", "--store", name, "--timeout")
    ledger = open_ledger(name)
    store = JobStore(ledger)
    epoch = store.take_charge("test")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.01):
            store.beat(epoch, {})

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        code, said, complaint = run(*asked, "20")
        assert (code, complaint) == (0, "") and "the coordinator beats" in said
    finally:
        stop.set()
        beating.join()
    code, said, complaint = run(*asked, "0.2")
    assert (code, said) == (1, "") and "no coordinator has beaten for 0.2 s" in complaint
    ledger.close()


def test_coordinator_whose_store_is_away_is_not_well(run: Run) -> None:
    code, _, complaint = run("health", "coordinator", "--store", f"redis://{NOBODY}/0")
    assert code == 1 and NOBODY in complaint


@contextmanager
def answering(status: int) -> Iterator[str]:
    """An HTTP server that answers so; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_ray_node_is_well_when_all_that_is_asked_answers(run: Run) -> None:
    with answering(200) as well, answering(503) as ill:
        assert run("health", "node", "--raylet", well)[:2] == (0, "the Ray node is well\n")
        assert run("health", "node", "--raylet", well, "--gcs", ill)[0] == 0, "no head, not asked"
        assert run("health", "node", "--raylet", well, "--head", "--gcs", well)[0] == 0
        code, _, complaint = run("health", "node", "--raylet", well, "--head", "--gcs", ill)
        assert code == 1 and f"{ill} does not answer" in complaint and "503" in complaint
    assert run("health", "node", "--raylet", f"http://{NOBODY}", "--timeout", "1")[0] == 1
