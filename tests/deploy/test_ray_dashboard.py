"""The Ray dashboard of a live service, in a headless browser: who is there, what they do for which job, their logs."""

import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from reference.dashboard import Dashboard, open_dashboard, require_browser
from reference.gateway import until
from reference.live_service import LiveService, Work, live_service, submit_work
from reference.processes import environment_without_ray

DOCS = Path(__file__).parents[2] / "docs/dashboard.md"

pytestmark = [pytest.mark.deploy, pytest.mark.ray, pytest.mark.timeout(1200)]


def id_of(job: str) -> str:
    return job.rpartition("/")[2]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared_image_cache: Path) -> Iterator[LiveService]:
    require_browser()
    with live_service(tmp_path_factory.mktemp("live")) as found:
        yield found


@pytest.fixture(scope="module")
def work(service: LiveService) -> Work:
    return submit_work(service.client)


@pytest.fixture(scope="module")
def dashboard(service: LiveService) -> Iterator[Dashboard]:
    """Logged in."""
    with open_dashboard(service.dashboard_url, service.ray_token) as found:
        found.log_in()
        yield found


def test_without_the_token_nothing_is_told(dashboard: Dashboard) -> None:
    for token in ("", "0" * 64):
        with pytest.raises(urllib.error.HTTPError) as caught:
            dashboard.ask("api/v0/actors", token=token)
        assert caught.value.code in (401, 403)
        caught.value.close()
    with dashboard.as_somebody("0" * 64) as stranger:
        stranger.open("actors")
        field = stranger.page.get_by_label("Authentication Token", exact=True)
        field.fill("0" * 64)
        field.press("Enter")
        stranger.page.get_by_role("alert").wait_for(state="visible")
        assert "coordinator" not in stranger.text()


def test_the_coordinator_and_the_workers_appear_with_speaking_names_and_states(
    dashboard: Dashboard, work: Work
) -> None:
    dashboard.open("actors")
    dashboard.wait_for_text("worker-0 on cpu", "coordinator on ")
    found = {row["Class"]: row for row in dashboard.rows()}
    assert found["ServiceCoordinator"]["Name"] == "coordinator"
    assert found["ServiceCoordinator"]["Repr"].startswith("coordinator on ")
    workers = [row for row in dashboard.rows() if row["Class"] == "SearchWorker" and row["State"] == "ALIVE"]
    assert workers and all(re.fullmatch(r"worker-\d+ on cpu", row["Repr"]) for row in workers)
    assert all(re.fullmatch(r"service/.+/\d+/worker-\d+", row["Name"]) for row in workers)
    assert found["ServiceCoordinator"]["State"] == found["SweepHost"]["State"] == "ALIVE"
    assert found["SweepHost"]["Name"] == f"sweep/{id_of(work.sweep)}"


def test_what_runs_is_shown_with_the_id_of_its_job(dashboard: Dashboard, work: Work) -> None:
    for task, kind in (
        ("run the jobs of the service", "ServiceCoordinator"),
        (f"job {id_of(work.endless)}: adapt, attempt 1", "SearchWorker"),
        (f"job {id_of(work.sweep)}: sweep, attempt 1", "SweepHost"),
    ):
        dashboard.open_actor(dashboard.tasks()[task]["actor_id"])
        dashboard.filter_tasks(task)
        dashboard.wait_for_text(task, kind)
        (row,) = (row for row in dashboard.rows() if row["Name"] == task)
        assert row["State"] == "RUNNING"


def test_what_has_ended_is_shown_with_the_id_of_its_job_and_status_calls_are_not(
    dashboard: Dashboard, work: Work
) -> None:
    wanted = [f"job {id_of(job)}: adapt, attempt 1" for job in work.adapted]
    wanted.append(f"job {id_of(work.few_shot)}: few_shot, attempt 1")

    def have_ended() -> bool:
        found = dashboard.tasks()
        return all(name in found and found[name]["state"] == "FINISHED" for name in wanted)

    until(have_ended, f"the tasks {wanted} to be told of")
    first = f"job {id_of(work.trained)}: adapt round-00000/family-0/task-00"
    assert any(name.startswith(first) for name in dashboard.tasks())
    assert not [name for name in dashboard.tasks() if "status" in name]


def test_ray_jobs_have_names_and_a_sweep_the_id_of_its_job(dashboard: Dashboard, work: Work) -> None:
    dashboard.open("jobs")
    dashboard.wait_for_text("metasearch service", f"sweep of job {id_of(work.sweep)}")
    found = {row["Name"]: row for row in dashboard.rows()}
    assert found["metasearch service"]["Status"] == "RUNNING"
    assert id_of(work.sweep) in found[f"sweep of job {id_of(work.sweep)}"]["Entrypoint"]


def test_logs_of_coordinator_and_workers_are_reachable_and_tell_of_jobs_and_rounds(
    dashboard: Dashboard, work: Work
) -> None:
    coordinator = dashboard.tasks()["run the jobs of the service"]["actor_id"]
    worker = dashboard.tasks()[f"job {id_of(work.endless)}: adapt, attempt 1"]["actor_id"]
    for actor, job, line in (
        (coordinator, work.trained, f"job={id_of(work.trained)} round=6"),
        (worker, work.endless, f"job={id_of(work.endless)} attempt=1"),
    ):
        dashboard.open(f"actors/{actor}")
        dashboard.find_in_log(id_of(job))
        dashboard.wait_for_text(line)

    log = dashboard.log_of(coordinator)
    assert f"{work.trained} has succeeded job={id_of(work.trained)}" in log
    assert re.search(rf"{work.trained}: version 3 of 6, loss \d\.\d+ job={id_of(work.trained)} round=3\n", log)
    logs = "".join(dashboard.log_of(actor["actor_id"]) for actor in dashboard.actors() if is_worker(actor))
    assert re.search(rf"begins worker=worker-\d job={id_of(work.endless)} attempt=1\n", logs)


def test_the_commands_of_the_docs_tell_the_same_without_a_browser(
    service: LiveService, dashboard: Dashboard, work: Work
) -> None:
    job = id_of(work.endless)
    worker = dashboard.tasks()[f"job {job}: adapt, attempt 1"]["actor_id"]
    environment = environment_without_ray() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": service.ray_token,
        "RAY_API_SERVER_ADDRESS": service.dashboard_url,  # this service's, whatever else runs here
    }
    commands = re.findall(r"^ray (?:list|logs) .*$", DOCS.read_text(), re.MULTILINE)
    found = []
    for command in commands:
        typed = (
            command.replace("ACTOR_ID", str(worker)).replace("job=ID", f"job={job}").replace("job ID:", f"job {job}:")
        )
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", typed], env=environment, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, f"{typed}\n{ended.stdout}\n{ended.stderr}"
        found.append(ended.stdout)
    actors, log, tasks = found
    assert re.search(r"name: coordinator\n", actors) and "class_name: SearchWorker" in actors
    assert re.search(rf"begins worker=worker-\d job={job} attempt=1", log)
    assert f"name: 'job {job}: adapt, attempt 1'" in tasks and "state: RUNNING" in tasks


def is_worker(actor: dict[str, object]) -> bool:
    return actor["class_name"] == "SearchWorker"
