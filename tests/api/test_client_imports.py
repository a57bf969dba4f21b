"""The client and the gateway stay small: no torch, no Ray, no part of the coordinator that needs them."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "torchvision", "matplotlib", "sklearn", "scipy", "coordinator.dispatcher")


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sorted(sys.modules), sep='\\n')"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", ["coordinator.api.client", "coordinator.api.gateway"])
def test_import_brings_nothing_heavy(module: str) -> None:
    loaded = loaded_by(module)
    assert module in loaded and "grpc" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_client_knows_no_store_and_no_server() -> None:
    loaded = loaded_by("coordinator.api.client")
    assert loaded.isdisjoint({"sqlite3", "redis", "coordinator.api.server", "workers.data.archives"})


def test_client_reads_a_study_without_anything_heavy(gateway, client) -> None:  # type: ignore[no-untyped-def]
    client.create_study("mine", preset="smoke")
    code = (
        "import sys; from coordinator.api.client import SearchClient\n"
        f"with SearchClient({gateway.address!r}, sys.stdin.read()) as client:\n"
        "    print(client.get_study('studies/mine').name, *sorted(sys.modules))"
    )
    token = client._metadata[0][1].removeprefix("Bearer ")
    found = subprocess.run([sys.executable, "-c", code], input=token, capture_output=True, text=True, check=True)
    name, *loaded = found.stdout.split()
    assert name == "studies/mine" and set(loaded).isdisjoint(HEAVY)
