"""The protocol's files: stubs are current, buf finds nothing, every call has a role."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.api.auth import Role
from coordinator.api.gatekeeper import OPEN_METHODS, REQUIRED_ROLES, SERVICE
from coordinator.api.server import SearchServicer
from coordinator.api.stubs import search_pb2 as pb

API = Path(__file__).parents[2] / "coordinator" / "api"
PROTO = API / "proto"
METHODS = pb.DESCRIPTOR.services_by_name["SearchService"].methods


def buf() -> str:
    found = shutil.which("buf", path=f"{Path(sys.executable).parent}") or shutil.which("buf")
    assert found is not None, "buf-bin is a development dependency"
    return found


def test_stubs_are_what_the_compiler_makes_of_the_proto(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PROTO / "generate.py", tmp_path], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(made) == {"search_pb2.py", "search_pb2.pyi", "search_pb2_grpc.py"}
    for name, text in made.items():
        assert (API / "stubs" / name).read_text() == text, f"{name} is stale, or was formatted: make proto"


@pytest.mark.parametrize("arguments", [("lint",), ("format", "--diff", "--exit-code")])
def test_buf_finds_nothing(arguments: tuple[str, ...]) -> None:
    found = subprocess.run([buf(), *arguments, str(PROTO)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_buf_would_find_something(tmp_path: Path) -> None:
    shutil.copytree(PROTO, tmp_path / "proto")
    path = tmp_path / "proto" / "metasearch" / "v1" / "search.proto"
    path.write_text(path.read_text().replace("string study_id = 1;", "  string studyId = 1;"))
    for arguments in (("lint",), ("format", "--diff", "--exit-code")):
        assert subprocess.run([buf(), *arguments, str(tmp_path / "proto")], capture_output=True).returncode != 0


def test_every_call_has_a_role_and_a_servicer() -> None:
    named = {f"/{SERVICE}/{method.name}" for method in METHODS}
    ours = {name for name in REQUIRED_ROLES if name.startswith(f"/{SERVICE}/")}
    assert pb.DESCRIPTOR.services_by_name["SearchService"].full_name == SERVICE
    assert ours == named and len(named) == 17
    assert not OPEN_METHODS & named
    assert all(method.name in SearchServicer.__dict__ for method in METHODS)


def test_calls_that_change_something_take_more_than_a_viewer() -> None:
    for method in METHODS:
        reads = method.name.startswith(("Get", "List", "Watch", "Download"))
        assert (REQUIRED_ROLES[f"/{SERVICE}/{method.name}"] is Role.VIEWER) == reads, method.name


def test_every_state_reason_and_rule_has_a_counterpart() -> None:
    from typing import get_args

    from common.space.genotype import DerivationRule
    from coordinator.jobs import FailureReason, JobState

    assert {name.removeprefix("JOB_STATE_") for name in pb.JobState.keys()[1:]} == {state.name for state in JobState}
    reasons = {name.removeprefix("FAILURE_REASON_") for name in pb.FailureReason.keys()[1:]}
    assert reasons == {reason.name for reason in FailureReason}
    rules = {name.removeprefix("DERIVATION_RULE_").lower() for name in pb.DerivationRule.keys()[1:]}
    assert rules == set(get_args(DerivationRule))


def test_generator_says_what_is_wrong_with_a_proto(tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("generate", PROTO / "generate.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.PROTO_FOLDER = tmp_path
    with pytest.raises(SystemExit, match="protoc failed"):
        module.generate(tmp_path)
