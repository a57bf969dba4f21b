"""The processes of a local service, as their parent sees them."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UnavailableError
from coordinator.local_service import READY, LocalService
from coordinator.settings import ServiceSettings

IN_PIECES = """
import sys, time
for piece in sys.argv[1:]:
    sys.stdout.write(piece)
    sys.stdout.flush()
    time.sleep(0.4)
"""


@pytest.fixture
def service(tmp_path: Path) -> LocalService:
    return LocalService(ServiceSettings(), logging.getLogger("test"), tmp_path / "logs")


def test_a_ready_line_that_comes_in_pieces_is_read_to_its_end(service: LocalService) -> None:
    line = READY + json.dumps({"host": "127.0.0.1", "port": 7171})
    pieces = ["something else\n", line[:9], line[9:], "\n"]
    with subprocess.Popen([sys.executable, "-c", IN_PIECES, *pieces], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert service._wait_for_port(child) == 7171
        child.stdout.close()
        assert child.wait(10) == 0, "nobody closed the pipe while it wrote"


def test_the_logs_say_where_metrics_are(service: LocalService, tmp_path: Path) -> None:
    (tmp_path / "logs" / "gateway.log").write_text("INFO metasearch.gateway Prometheus metrics: http://a/metrics\n")
    (tmp_path / "logs" / "coordinator.log").write_text(
        "INFO Prometheus metrics: http://old/metrics\nINFO Ray dashboard: http://c\nINFO Prometheus metrics: http://b/metrics\n"
    )
    assert service.metrics_lines() == ["Prometheus metrics: http://a/metrics", "Prometheus metrics: http://b/metrics"]
    assert service.dashboard_lines() == ["Ray dashboard: http://c"]
    (tmp_path / "logs" / "coordinator.log").write_text("")
    (tmp_path / "logs" / "gateway.log").write_text("")
    assert service.metrics_lines() == []


def test_a_gateway_that_ends_at_once_is_an_error_with_its_last_line(service: LocalService, tmp_path: Path) -> None:
    (tmp_path / "logs" / "gateway.log").write_text("Error: cannot listen on 127.0.0.1:1\n")
    with (
        subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as child,
        pytest.raises(UnavailableError, match="the gateway did not start: Error: cannot listen on"),
    ):
        service._wait_for_port(child)
