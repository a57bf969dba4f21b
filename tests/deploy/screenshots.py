"""Takes the pictures of docs/dashboard.md, of a live service that is at work: `make screenshots`."""

import argparse
import io
import re
import sys
import tempfile
import time
from pathlib import Path

from reference.dashboard import Dashboard, open_dashboard
from reference.gateway import until
from reference.live_service import LiveService, Work, live_service, submit_work
from rich.console import Console

from coordinator.api.client import SearchClient
from coordinator.job_table import render
from coordinator.live_jobs import LiveJobs

FOLDER = Path(__file__).parents[2] / "docs" / "images"
_STEPS = 30_000  # of the adaptation that is shown at work
_TOP_COLUMNS = 144
_WATCHED_S = 20.0  # for the pace of jobs


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures go")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as scratch, live_service(Path(scratch)) as service:
        work = submit_work(service.client, _STEPS)
        fill_queue(service.client)
        take_all(service, work, folder)


def fill_queue(client: SearchClient) -> None:
    """Some jobs that wait."""
    for seed in range(2):
        client.submit("studies/digits", "digits", num_ways=3, seed=seed)
    client.meta_train("studies/digits", until_version=50)


def take_all(service: LiveService, work: Work, folder: Path) -> None:
    """All pictures."""
    draw_top(service, folder / "top.svg")
    with open_dashboard(service.dashboard_url, service.ray_token, height=1000) as dashboard:
        dashboard.log_in()
        for name, take in (("jobs", take_jobs), ("actors", take_actors), ("worker", take_worker), ("log", take_log)):
            take(dashboard, work)
            dashboard.page.screenshot(path=folder / f"dashboard-{name}.png")
            print(folder / f"dashboard-{name}.png", flush=True)


def draw_top(service: LiveService, path: Path) -> None:
    """What `metasearch top` shows, once it has looked for a while."""
    jobs = LiveJobs(service.client, None, time.monotonic)
    until_s = time.monotonic() + _WATCHED_S
    until(lambda: jobs.poll() and time.monotonic() > until_s, "the jobs to get on", 2 * _WATCHED_S)
    console = Console(
        record=True, width=_TOP_COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    console.print(render(jobs.poll(), console.width))
    # Fonts would come from elsewhere: whoever looks has one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="metasearch top"), flags=re.DOTALL)
    path.write_text(picture, "utf-8")
    print(path, flush=True)


def take_jobs(dashboard: Dashboard, work: Work) -> None:
    """Ray's jobs: the service, and a sweep with the id of its job."""
    dashboard.open("jobs")
    dashboard.wait_for_text("metasearch service", f"sweep of job {id_of(work.sweep)}")
    # Where Python and the settings are on this machine is nobody's concern.
    dashboard.page.locator("tbody td *").evaluate_all(
        "(found, path) => found.filter(each => each.children.length == 0)"
        ".forEach(each => { each.textContent = each.textContent.replace(path, '').replace(/--settings \\S+/, ''); })",
        f"{Path(sys.executable).parent}/",
    )


def take_actors(dashboard: Dashboard, work: Work) -> None:
    """The coordinator and its workers."""
    dashboard.open("actors")
    dashboard.wait_for_text("ServiceCoordinator", "worker-0 on cpu")


def take_worker(dashboard: Dashboard, work: Work) -> None:
    """What a worker has done, and is doing."""
    task = f"job {id_of(work.endless)}: adapt, attempt 1"
    dashboard.open_actor(dashboard.tasks()[task]["actor_id"])
    dashboard.filter_tasks("attempt")  # leaves the tasks of rounds out, which are many
    dashboard.wait_for_text(task)
    scroll_to(dashboard, "Tasks History")


def take_log(dashboard: Dashboard, work: Work) -> None:
    """The coordinator's log."""
    (coordinator,) = (actor for actor in dashboard.actors() if actor["class_name"] == "ServiceCoordinator")
    dashboard.open(f"actors/{coordinator['actor_id']}")
    dashboard.wait_for_text(f"job={id_of(work.trained)}")
    dashboard.page.locator("button.MuiIconButton-root").last.click()  # shows more lines
    scroll_to(dashboard, "Logs")


def scroll_to(dashboard: Dashboard, heading: str) -> None:
    """Has a section begin at the upper edge, below the dashboard's own head."""
    section = dashboard.page.get_by_text(heading, exact=True).last
    section.evaluate("element => element.scrollIntoView()")
    dashboard.page.evaluate("window.scrollBy(0, -110)")


def id_of(job: str) -> str:
    """The id in a job's name."""
    return job.rpartition("/")[2]


if __name__ == "__main__":
    main()
