"""Simulated workers under the real coordinator: closed forms where there are any, and the real prior, bit for bit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference.processes import Run, command_line

from common.artifacts import PriorStore
from common.errors import InvalidInputError, NotFoundError
from common.loading import load
from common.messages import JobRequest, PartialSumRequest
from common.meta.aggregate import MAX_VECTORS
from common.meta.prior import Prior
from coordinator import study
from coordinator.calls import Call, Outcome
from coordinator.local import LocalExecutor
from coordinator.simulation.costs import Costs, Sizes, load_costs, sizes_of
from coordinator.simulation.events import Clock, Events
from coordinator.simulation.models import Broadcast, Failures, Link, Network, TaskTimes
from coordinator.simulation.outcome import SimulationOutcome
from coordinator.simulation.pool import SimulatedPool
from coordinator.simulation.simulator import Assumptions, Setup, SimulatedService, simulate
from coordinator.simulation.workload import Mode, Workload
from workers.runner import TaskRunner

pytestmark = pytest.mark.usefixtures("one_thread")

FREE = Costs(**{name: 0.0 for name in Costs.model_fields if name.endswith(("_s", "_byte"))})
"""A coordinator that takes no time."""
INSTANT = Network(latency_s=0.0, bytes_per_s=1e30)
IMMORTAL = Failures(deaths_per_hour=0.0)
NOTHING = Sizes(0, 0, 0)


def a_pool(num_workers: int, seconds: Callable[[str], float], **changes: Any) -> SimulatedPool:
    """Workers that take strings for calls."""
    arguments: dict[str, Any] = {
        "clock": Clock(),
        "costs": FREE,
        "sizes": NOTHING,
        "network": INSTANT,
        "failures": IMMORTAL,
        "seed": 0,
        "seconds_of": lambda call, attempt: seconds(call),
        "compute": lambda call, prior: f"result of {call}",
        "takes_over": False,
    }
    return SimulatedPool(num_workers, **{**arguments, **changes})


def ends(pool: SimulatedPool, clock: Clock, count: int) -> dict[str, float]:
    """When each of so many calls came back."""
    found: dict[str, float] = {}
    while len(found) < count:
        for outcome in pool.poll(1e6):
            assert outcome.key not in found
            found[outcome.key] = clock.now_s
    return found


def assumed(**changes: Any) -> Assumptions:
    """Nothing takes time but tasks, which all take ten seconds."""
    plain = {
        "costs": FREE,
        "network": INSTANT,
        "failures": IMMORTAL,
        "times": TaskTimes(distribution="constant", mean_s=10.0),
        "workload": Workload(studies=1, tasks_per_worker=1.0, adapt_jobs_per_worker=0.0),
        "duration_of_mean": 30.0,
    }
    return Assumptions(**{**plain, **changes})


def test_events_happen_in_order_of_time_then_of_telling() -> None:
    events, seen = Events(), []
    for time_s, name in ((2.0, "c"), (1.0, "a"), (1.0, "b"), (9.0, "late")):
        events.at(time_s, lambda now_s, name=name: seen.append((now_s, name)))  # type: ignore[misc]
    events.at(1.5, lambda now_s: events.at(now_s, lambda then_s: seen.append((then_s, "follows"))))
    events.run_until(3.0)
    assert seen == [(1.0, "a"), (1.0, "b"), (1.5, "follows"), (2.0, "c")]
    assert events.next_s == 9.0


@pytest.mark.parametrize(
    ("times", "below"),
    [
        (TaskTimes(distribution="constant", mean_s=3.0), lambda x: float(x >= 3.0)),
        (
            TaskTimes(distribution="lognormal", mean_s=3.0, sigma=0.8),
            lambda x: 0.5 * (1 + math.erf((math.log(x / 3.0) + 0.32) / (0.8 * math.sqrt(2)))),
        ),
        (TaskTimes(distribution="pareto", mean_s=3.0, tail_index=3.0), lambda x: max(1 - (2.0 / x) ** 3, 0.0)),
    ],
)
def test_task_times_are_drawn_from_their_distribution(times: TaskTimes, below: Callable[[float], float]) -> None:
    drawn = np.array([times.draw(1, str(number)) for number in range(4000)])
    assert drawn.mean() == pytest.approx(3.0, rel=0.06)
    for x in (1.0, 2.5, 3.0, 5.0, 12.0):
        assert (drawn <= x).mean() == pytest.approx(below(x), abs=0.025)
    assert times.draw(1, "7") == drawn[7]
    assert times.distribution == "constant" or times.draw(2, "7") != drawn[7]
    assert drawn.max() <= 20 * 3.0


def test_workers_live_as_long_as_their_rate_says() -> None:
    failures = Failures(deaths_per_hour=2.0)
    lives = [failures.draw(0, worker, 1) for worker in range(3000)]
    assert np.mean(lives) == pytest.approx(1800.0, rel=0.06)
    assert IMMORTAL.draw(0, 0, 1) == math.inf


def test_a_prior_reaches_hosts_in_doubling_numbers() -> None:
    broadcast = Broadcast(100.0, 10.0, Network(latency_s=0.0, bytes_per_s=10.0))  # a transfer takes a second
    pulled = [broadcast.pull(host, 100.0) for host in range(7)]
    assert [ready_s for ready_s, _ in pulled] == [101.0, 102.0, 102.0, 103.0, 103.0, 103.0, 103.0]
    assert sum(sent for _, sent in pulled) == pytest.approx(10.0 * sum(1 / k for k in range(1, 8)))
    assert broadcast.pull(2, 500.0) == (102.0, 0.0), "it is there already"
    assert broadcast.pull(7, 500.0)[0] == 501.0


def test_results_come_one_after_the_other_through_one_interface() -> None:
    link = Link(Network(latency_s=0.5, bytes_per_s=10.0))
    assert [link.send(now_s, 20.0) for now_s in (0.0, 1.0, 9.0)] == [2.5, 4.5, 11.5]
    assert link.num_bytes == 60.0


def test_a_worker_has_two_calls_and_begins_the_second_when_the_first_ends() -> None:
    clock = Clock()
    pool = a_pool(2, lambda call: 4.0, clock=clock)
    for number in range(6):
        pool.submit(str(number), str(number), None)  # type: ignore[arg-type]
    assert pool.num_pending == 6
    assert ends(pool, clock, 6) == {"0": 4.0, "1": 4.0, "2": 8.0, "3": 8.0, "4": 12.0, "5": 12.0}
    assert pool.num_pending == 0 and pool.tally.useful_s == 24.0


def test_an_overloaded_coordinator_limits_the_workers() -> None:
    clock = Clock()
    pool = a_pool(50, lambda call: 1.0, clock=clock, costs=FREE.model_copy(update={"receive_s": 0.1}))
    for number in range(600):
        pool.submit(str(number), str(number), None)  # type: ignore[arg-type]
    ends(pool, clock, 600)
    assert clock.now_s == pytest.approx(1.0 + 600 * 0.1, rel=0.01), "ten results a second, whatever the workers can"
    assert clock.busy_s["receive"] / clock.now_s > 0.98


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_results_wait_for_the_coordinator_as_in_an_m_d_1_queue(load: float) -> None:
    clock, num_workers, mean_s = Clock(), 300, 30.0
    # Many workers with times of their own: results come in as good as at random.
    service_s = load * mean_s / num_workers
    times = TaskTimes(distribution="lognormal", mean_s=mean_s, sigma=0.6)
    costs = FREE.model_copy(update={"receive_s": service_s})
    pool = a_pool(num_workers, lambda call: times.draw(0, call), clock=clock, costs=costs)
    for number in range(2 * num_workers):
        pool.submit(str(number), str(number), None)  # type: ignore[arg-type]
    num_done, number, waited_s = 0, 2 * num_workers, 0.0
    while num_done < 7_000:
        if num_done == 1_000:
            waited_s = pool.tally.waited_s
        for _ in pool.poll(1e6):
            pool.submit(str(number), str(number), None)  # type: ignore[arg-type]
            number += 1
            num_done += 1
    expected_s = load * service_s / (2 * (1 - load))
    assert (pool.tally.waited_s - waited_s) / 6_000 == pytest.approx(expected_s, rel=0.15)


def test_a_call_whose_worker_dies_is_lost_and_the_one_behind_runs_elsewhere() -> None:
    clock = Clock()

    class OneDeath(Failures):
        def draw(self, seed: int, worker: int, incarnation: int) -> float:
            return 3.0 if (worker, incarnation) == (0, 1) else math.inf

    pool = a_pool(2, lambda call: 4.0, clock=clock, failures=OneDeath(restart_s=5.0))
    for number in range(4):
        pool.submit(str(number), str(number), None)  # type: ignore[arg-type]
    lost: list[Outcome] = []
    while not lost:
        lost = pool.poll(100.0)
    assert [(each.key, each.result) for each in lost] == [("0", None)] and "died" in lost[0].lost
    assert clock.now_s == 3.0 and pool.num_workers == 1 and pool.tally.wasted_s == 3.0
    pool.submit("0", "0", None)  # type: ignore[arg-type]
    # Worker 1 has two calls; its first ends at 4, and the one that was behind the lost one is next in line.
    assert ends(pool, clock, 4) == {"1": 4.0, "3": 8.0, "2": 12.0, "0": 12.0}
    assert pool.num_workers == 2


@pytest.mark.parametrize(("takes_over", "expected_s"), [(False, 101.0), (True, 3.0)])
def test_idle_workers_take_over_what_waits_behind_long_work(takes_over: bool, expected_s: float) -> None:
    clock = Clock()
    pool = a_pool(2, lambda call: 100.0 if call == "long" else 1.0, clock=clock, takes_over=takes_over)
    for key in ("long", "a", "behind", "b"):
        pool.submit(key, key, None)  # type: ignore[arg-type]
    found = ends(pool, clock, 4)
    assert found["behind"] == expected_s and found["long"] == 100.0


def test_nothing_waits_behind_a_job_while_other_workers_become_free() -> None:
    clock = Clock()
    a_job = JobRequest.__new__(JobRequest)
    object.__setattr__(a_job, "returns_update", False)
    seconds = lambda call: 100.0 if call is a_job else 1.0  # noqa: E731
    pool = a_pool(2, seconds, clock=clock, compute=lambda call, prior: None)
    pool.submit("job", a_job, None)
    for number in range(6):
        pool.submit(str(number), str(number), None)  # type: ignore[arg-type]
    assert ends(pool, clock, 7) == {**{str(number): number + 1.0 for number in range(6)}, "job": 100.0}


def test_rounds_beside_long_jobs_leave_few_workers_idle() -> None:
    workload = Workload(studies=4, tasks_per_worker=8.0, adapt_jobs_per_worker=0.5, adapt_length=4.0)
    times = TaskTimes(mean_s=10.0)
    found = simulate(Setup(40, "updates", NOTHING, assumed(workload=workload, times=times)))
    assert found.utilisation > 0.97
    assert found.jobs_per_s * 40.0 > 10, "of 20 submitted tasks, which take 40 s each, more than half are at work"


def test_a_call_that_is_given_up_frees_its_worker_at_the_price_of_a_restart() -> None:
    clock = Clock()
    pool = a_pool(1, lambda call: 50.0, clock=clock, failures=Failures(deaths_per_hour=0.0, restart_s=7.0))
    for key in ("given up", "other"):
        pool.submit(key, key, None)  # type: ignore[arg-type]
    assert pool.poll(10.0) == [] and clock.now_s == 10.0
    pool.abandon("given up")
    assert ends(pool, clock, 1) == {"other": 67.0}
    assert pool.num_pending == 0


@pytest.mark.parametrize(
    ("tasks_per_worker", "expected"),
    [
        (1.0, 1.0),
        (1.5, 0.75),  # every other time half of the workers have nothing to do
        (0.25, 0.25),
    ],
)
def test_utilisation_is_that_of_rounds_of_equal_tasks(tasks_per_worker: float, expected: float) -> None:
    workload = Workload(studies=1, tasks_per_worker=tasks_per_worker, adapt_jobs_per_worker=0.0)
    found = simulate(Setup(8, "updates", NOTHING, assumed(workload=workload)))
    assert found.utilisation == pytest.approx(expected, abs=0.01)
    rounds_s = 10.0 * math.ceil(tasks_per_worker)
    assert found.round_s is not None and found.round_s.median == pytest.approx(rounds_s)
    assert found.tasks_per_s == pytest.approx(8 * tasks_per_worker / rounds_s, rel=0.06)
    assert found.wasted_fraction == found.num_deaths == found.staleness_max == found.coordinator_load == 0


def test_submitted_tasks_fill_what_rounds_leave_idle() -> None:
    def busy(jobs_per_worker: float) -> SimulationOutcome:
        workload = Workload(studies=1, tasks_per_worker=1.5, adapt_jobs_per_worker=jobs_per_worker, adapt_length=1.0)
        return simulate(Setup(8, "updates", NOTHING, assumed(workload=workload)))

    without, found = busy(0.0), busy(1.0)
    assert without.utilisation < 0.8 < 0.99 < found.utilisation
    assert without.jobs_per_s == 0 < found.jobs_per_s


def heads(mode: Mode, num_workers: int, assumptions: Assumptions, num_rounds: int) -> list[str]:
    """Digests of the versions of a study's prior."""
    service = SimulatedService(Setup(num_workers, mode, NOTHING, assumptions))
    found: list[str] = []
    try:
        service.add_study("one")

        def note() -> None:
            digest = service.head("one")
            if digest and digest not in found:
                found.append(digest)

        while len(found) <= num_rounds:
            service.run_until(service.clock.now_s + 1.0, note)
        for record in service.rounds()["one"]:
            assert (record.metrics["tasks_accepted"], record.metrics["tasks_rejected"]) == (18, 0), "each task once"
    finally:
        service.close()
    return found[: num_rounds + 1]


def test_the_prior_does_not_depend_on_deaths_workers_or_sums() -> None:
    def with_tasks(num_workers: int, **changes: Any) -> Assumptions:
        workload = Workload(studies=1, tasks_per_worker=18 / num_workers, adapt_jobs_per_worker=0.0)
        times = TaskTimes(distribution="pareto", mean_s=10.0)
        return assumed(workload=workload, times=times, **changes)

    expected = heads("updates", 3, with_tasks(3), 3)
    assert len(set(expected)) == 4
    deadly = Failures(deaths_per_hour=60.0, restart_s=5.0)
    assert heads("updates", 5, with_tasks(5, failures=deadly), 3) == expected
    assert heads("sums", 2, with_tasks(2, failures=deadly), 3) == expected
    hosts = Network(workers_per_host=2)
    assert heads("host_sums", 5, with_tasks(5, failures=deadly, network=hosts, costs=Costs()), 3) == expected


def test_with_real_adaptation_the_prior_is_that_of_meta_training_in_one_process(tmp_path: Path) -> None:
    config = load(
        "smoke",
        ["rounds=2", "network.channels=2", "inner.steps=1", "families.0.tasks_per_round=6"],
        environment={},
    )
    store = PriorStore(tmp_path)
    expected = study.run(
        study.begin(store, config), config, LocalExecutor(torch.device("cpu")), store, [], lambda: 0.0
    ).digest()
    runner = TaskRunner(torch.device("cpu"))

    def compute(call: Call, prior: Prior | None) -> Any:
        assert prior is not None
        if isinstance(call, PartialSumRequest):
            return runner.run_many(prior, call)
        return runner.run(prior, call)  # type: ignore[arg-type]

    setup = Setup(2, "sums", sizes_of(config), assumed(failures=Failures(deaths_per_hour=100.0), costs=Costs()))
    service = SimulatedService(setup, compute, config)
    try:
        service.add_study("digits")
        while not service.num_jobs_done:
            service.run_until(service.clock.now_s + 10.0)
        assert service.head("digits") == expected
    finally:
        service.close()


def test_equal_seeds_make_equal_simulations_and_others_others() -> None:
    def found(seed: int) -> SimulationOutcome:
        times = TaskTimes(mean_s=10.0)
        workload = Workload(studies=2, tasks_per_worker=2.0, adapt_jobs_per_worker=0.5)
        failures = Failures(deaths_per_hour=5.0)
        modelled = {"costs": Costs(), "network": Network(), "duration_of_mean": 12.0}
        assumptions = assumed(times=times, workload=workload, failures=failures, **modelled)
        return simulate(Setup(6, "sums", Sizes(10**6, 10**6, 2 * 10**6), assumptions, seed))

    first = found(1)
    assert found(1) == first != found(2)
    assert first.coordinator_load == pytest.approx(sum(first.load_by.values()))


def test_sums_of_hosts_save_most_of_the_bytes_that_reach_the_coordinator() -> None:
    workload = Workload(studies=1, tasks_per_worker=2.0, adapt_jobs_per_worker=0.0)
    sizes = Sizes(1000, 1000, 2000)
    assumptions = assumed(workload=workload, network=Network(workers_per_host=4), duration_of_mean=24.0)
    found = {mode: simulate(Setup(8, mode, sizes, assumptions)) for mode in ("updates", "host_sums")}
    # Of 16 tasks a round: 16 updates, or a sum of each of two hosts.
    assert found["updates"].inward_bytes_per_s * 20.0 == pytest.approx(16_000, rel=0.1)
    assert found["host_sums"].inward_bytes_per_s * 20.0 == pytest.approx(4_000, rel=0.1)
    # A round leaves room for one call of other jobs, so its last task begins when the first sum is back: a wave more.
    assert 0.6 < found["host_sums"].tasks_per_s / found["updates"].tasks_per_s < 0.7


def test_rounds_have_no_more_tasks_than_can_be_summed() -> None:
    workload = Workload(studies=2, tasks_per_worker=4.0)
    assert (workload.tasks_per_round(1000), workload.num_studies(1000)) == (2000, 2)
    assert (workload.tasks_per_round(10_000), workload.num_studies(10_000)) == (MAX_VECTORS, 10)


def test_sizes_are_of_the_vectors_that_travel() -> None:
    config = load("smoke", ["network.heads.32=4"], environment={})
    sizes = sizes_of(config)
    service_prior = study.initial_prior(config)
    assert sizes.prior_bytes == 4 * sum(vector.size for vector in service_prior.vectors.values())
    assert sizes.prior_bytes - sizes.update_bytes == service_prior.vectors["head/16"].nbytes, "one head of two"
    assert sizes.sum_bytes == 2 * sizes.update_bytes


def test_costs_come_from_a_file_and_mistakes_in_it_are_named(tmp_path: Path) -> None:
    file = tmp_path / "costs.json"
    file.write_text(json.dumps({"commit_s": 0.25, "provenance": "a test"}))
    assert load_costs(file).commit_s == 0.25
    for content, problem in (('{"commit_s": -1}', "commit_s"), ('{"comit_s": 1}', "comit_s"), ("{", "not JSON")):
        file.write_text(content)
        with pytest.raises(InvalidInputError, match=problem):
            load_costs(file)
    with pytest.raises(NotFoundError, match="fit_costs"):
        load_costs(tmp_path / "none.json")


@pytest.fixture
def metasearch(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(capsys, monkeypatch)


def test_simulate_prints_a_table_and_an_object_and_draws(metasearch: Run, tmp_path: Path) -> None:
    options = ("--assume", "duration_of_mean=6", "--assume", "workload.adapt_jobs_per_worker=0", "--preset", "smoke")
    plot = tmp_path / "scale.png"
    code, printed, said = metasearch(
        "simulate", "--workers", "2", "--mode", "updates,sums", "--plot", str(plot), "--json", *options
    )
    assert code == 0
    content = json.loads(printed)
    found = [(each["num_workers"], each["mode"]) for each in content["outcomes"]]
    assert found == [(2, "updates"), (2, "sums")]
    assert all(0.5 < each["utilisation"] <= 1 for each in content["outcomes"])
    assert content["assumptions"]["workload"]["adapt_jobs_per_worker"] == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "limited by" in said


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--workers", "ten"), "--workers must be whole numbers separated by commas, got 'ten'"),
        (("--workers", "0"), "--workers must be within 1..20,000, got 0"),
        (("--mode", "fast"), "got 'fast'"),
        (("--assume", "times.mean_s"), "--assume must be FIELD=VALUE"),
        (("--assume", "times.mean_s=-1"), "times.mean_s"),
        (("--assume", "times.men_s=1"), "times.men_s"),
        (("--costs", "nowhere.json"), "there is no file nowhere.json"),
    ],
)
def test_mistakes_are_named(metasearch: Run, options: tuple[str, ...], problem: str) -> None:
    code, printed, said = metasearch("simulate", *options)
    assert code != 0 and not printed
    assert problem in " ".join(said.split())
