"""A real Prometheus as a process of its own, by the configuration of deploy/ with the targets of a test."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from reference.monitoring import PROMETHEUS

SCRAPE_S = 2
_READY_S = 60.0


def require_prometheus() -> None:
    """Skips the test where there is none."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing; Debian has it in the package of this name")


class PrometheusServer:
    """Scrapes and evaluates every two seconds. Everything else is as deploy/prometheus/prometheus.yml says.

    Args:
        folder: for data, configuration and log.
        port: to listen on.
        ray_file: where Ray lists its targets.
        gateways: HOST:PORT of each.
    """

    def __init__(self, folder: Path, port: int, ray_file: Path, gateways: Sequence[str]) -> None:
        folder.mkdir()
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = dict.fromkeys(config["global"], f"{SCRAPE_S}s")
        config["rule_files"] = [str(PROMETHEUS / name) for name in config["rule_files"]]
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        # Names of containers mean nothing here; files and addresses do.
        del jobs["ray"]["dns_sd_configs"], jobs["metasearch-gateway"]["dns_sd_configs"]
        jobs["ray"]["file_sd_configs"][0] |= {"files": [str(ray_file)], "refresh_interval": "2s"}
        jobs["metasearch-gateway"]["static_configs"] = [{"targets": list(gateways)}]
        jobs["prometheus"]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        until_s = time.monotonic() + _READY_S
        while time.monotonic() < until_s and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return
            time.sleep(0.1)
        self.close()
        raise AssertionError(self.log.read_text())

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples that a query has at this moment."""
        found: list[dict[str, Any]] = self._get("query", query=expr)["result"]
        return found

    def value(self, expr: str) -> float:
        """Of a query with one sample."""
        (sample,) = self.query(expr)
        return float(sample["value"][1])

    def names(self, pattern: str) -> set[str]:
        """Names of all metrics that match."""
        found: list[str] = self._get("label/__name__/values", **{"match[]": f'{{__name__=~"{pattern}"}}'})
        return set(found)

    def alerts(self) -> dict[str, str]:
        """States of the alerts that are pending or firing, by name."""
        return {each["labels"]["alertname"]: each["state"] for each in self._get("alerts")["alerts"]}

    def targets(self) -> dict[str, list[str]]:
        """Health of all targets, by job."""
        found: dict[str, list[str]] = {}
        for target in self._get("targets")["activeTargets"]:
            found.setdefault(target["labels"]["job"], []).append(target["health"])
        return found

    def _get(self, path: str, **arguments: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)["data"]

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(30)
