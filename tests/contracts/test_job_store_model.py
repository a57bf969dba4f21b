"""The job store against a model in plain Python, and under many threads at once.

Two coordinators that take charge from each other, users that repeat themselves, workers that answer late.
"""

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from contracts.invariants import check_invariants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config import DatasetRef
from common.errors import AlreadyExistsError, ConflictError, MetaSearchError, QuotaError
from common.tasks import TaskChoice
from coordinator.jobs import AdaptSpec, Failure, FailureReason, Job, JobSpec, MetaTrainSpec
from coordinator.store.jobs import JobStore
from coordinator.store.records import Plan, PriorPointer, Quota, Study

QUOTA = Quota(max_queued=4, max_running=3)
TENANTS = ("a", "ab")
FAILURE = Failure(reason=FailureReason.INTERNAL, message="failed")
SPECS: tuple[JobSpec, ...] = (
    MetaTrainSpec(),
    AdaptSpec(choice=TaskChoice(data=DatasetRef(source="digits"), image_size=8, classes=("0", "1")), contribute=True),
)
EXAMPLES = itertools.count()


def pointer(version: int, made_by: str, digest: str) -> PriorPointer:
    return PriorPointer(version=version, digest=digest, stem=digest, created_s=1.0, made_by=made_by)


def new_study(store: JobStore, epoch: int, tenant: str) -> None:
    store.create_study(Study(tenant=tenant, study="s", config={}, created_s=1.0))
    store.set_first_prior(epoch, tenant, "s", pointer(0, "", "digest-0"))


# One after the other, against the model


@dataclass
class ModelJob:
    tenant: str
    max_attempts: int
    deadline: int | None
    state: str = "queued"
    attempt: int = 0
    failures: int = 0
    epoch: int = 0
    not_before: int = 0
    suspended: bool = False


@dataclass
class Lineage:
    version: int = 0
    plan_of: str | None = None


@dataclass
class World:
    """The store, and what it should hold."""

    store: JobStore
    prefix: str
    epoch: int = 0
    epochs: list[int] = field(default_factory=lambda: [0, 0])
    now: int = 1000
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    created: list[Job] = field(default_factory=list)
    handles: list[Job] = field(default_factory=list)
    requests: dict[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    heads: dict[str, Lineage] = field(default_factory=dict)

    def count(self, tenant: str, *states: str) -> int:
        return sum(job.tenant == tenant and job.state in states for job in self.jobs.values())

    def coordinator(self, who: int) -> int:
        """Mostly the epoch in charge, at times that of the one that was replaced."""
        return min(self.epochs) if who == 0 else max(self.epochs)

    def job(self, which: int, *states: str) -> Job:
        """A job, mostly one in these states."""
        fit = [job for job in self.created if self.jobs[job.job_id].state in states and which % 6]
        return (fit or self.created)[which % len(fit or self.created)]

    def handle(self, which: int) -> Job:
        """What a start returned, mostly of an attempt that lasts."""
        fit = [
            handle
            for handle in self.handles
            if which % 6
            and self.holds(self.jobs[handle.job_id], self.epoch, handle.attempt)
            and self.jobs[handle.job_id].state in ("running", "cancelling")
        ]
        return (fit or self.handles)[which % len(fit or self.handles)]

    def holds(self, job: ModelJob, epoch: int, attempt: int) -> bool:
        return (job.epoch, job.attempt) == (epoch, attempt)


class Refused(Exception):
    """The model expects an error of this class."""

    def __init__(self, kind: type[MetaSearchError]) -> None:
        self.kind = kind


def expect(world: World, call: Callable[[], Any], predict: Callable[[], Any]) -> Any:
    """Makes a call, and the change of the model that it should make; both are refused, or neither is."""
    expected: type[MetaSearchError] | None = None
    try:
        predict()
    except Refused as refused:
        expected = refused.kind
    try:
        answer = call()
    except MetaSearchError as error:
        assert expected is not None, error
        assert isinstance(error, expected)
        return None
    assert expected is None
    return answer


def need(condition: bool, kind: type[MetaSearchError] = ConflictError) -> None:
    if not condition:
        raise Refused(kind)


def take_charge(world: World, who: int, *_: int) -> None:
    world.epochs[who % 2] = world.epoch = world.store.take_charge(f"coordinator {who % 2}")


def create(world: World, who: int, which: int, what: int) -> None:
    tenant = world.prefix + TENANTS[who % 2]
    request = None if which % 3 == 0 else which % 3
    kind = what % 2
    job_id = f"{world.prefix}{len(world.created):03d}"
    deadline = None if what % 3 else world.now + 5
    job = Job(
        tenant=tenant,
        study="s",
        job_id=job_id,
        spec=SPECS[kind],
        priority=what % 10,
        max_attempts=1 + what % 3,
        queue_deadline_s=deadline,
        created_s=world.now,
    )
    repeats = request is not None and (tenant, request) in world.requests

    def predict() -> None:
        if request is not None and repeats:
            need(world.requests[tenant, request][1] == kind, AlreadyExistsError)
            return
        need(world.count(tenant, "queued") < 4, QuotaError)
        world.jobs[job_id] = ModelJob(tenant, 1 + what % 3, deadline)
        world.created.append(job)
        if request is not None:
            world.requests[tenant, request] = (job_id, kind)

    request_id = None if request is None else f"request-{request}"
    made = expect(world, lambda: world.store.create_job(job, request_id, QUOTA), predict)
    if made is not None and request is not None:
        assert made.job_id == world.requests[tenant, request][0]


def of_user(action: str) -> Callable[[World, int, int, int], None]:
    def act(world: World, who: int, which: int, what: int) -> None:
        if not world.created:
            return
        job = world.job(which, "queued", "running", "cancelling")
        model = world.jobs[job.job_id]
        pauses = what % 3 == 0

        def cancel() -> None:
            need(model.state not in ("succeeded", "failed"))
            model.state = {"queued": "cancelled", "running": "cancelling"}.get(model.state, model.state)

        def suspend() -> None:
            need(model.state in ("queued", "running"))
            model.suspended = pauses

        if action == "cancel":
            expect(world, lambda: world.store.cancel_job(job.tenant, "s", job.job_id, world.now), cancel)
        else:
            expect(world, lambda: world.store.suspend_job(job.tenant, "s", job.job_id, pauses), suspend)

    return act


def start(world: World, who: int, which: int, what: int) -> None:
    if not world.created:
        return
    job, epoch = world.job(which, "queued"), world.coordinator(who)
    model = world.jobs[job.job_id]

    def predict() -> None:
        need(model.state == "queued" and not model.suspended and world.now >= model.not_before)
        need(epoch == world.epoch)
        need(world.count(job.tenant, "running", "cancelling") < 3, QuotaError)
        model.state, model.attempt, model.epoch = "running", model.attempt + 1, epoch

    started = expect(world, lambda: world.store.start(epoch, job, world.now, 0, QUOTA), predict)
    if started is not None:
        world.handles.append(started)


def give_up(world: World, who: int, which: int, what: int) -> None:
    if not world.created:
        return
    job, epoch = world.job(which, "queued"), world.coordinator(who)
    model = world.jobs[job.job_id]

    def predict() -> None:
        need(model.state == "queued" and model.deadline is not None and world.now >= model.deadline)
        need(epoch == world.epoch)
        model.state = "failed"

    expect(world, lambda: world.store.give_up(epoch, job, world.now, FAILURE), predict)


def of_holder(action: str) -> Callable[[World, int, int, int], None]:
    """What is done with a job that was started, now or long ago, by whichever coordinator."""

    def act(world: World, who: int, which: int, what: int) -> None:
        if not world.handles:
            return
        handle, epoch, store, now = (
            world.handle(which),
            world.coordinator(who),
            world.store,
            world.now,
        )
        model = world.jobs[handle.job_id]
        uses = what % 2 == 0
        mine = world.holds(model, epoch, handle.attempt)

        def report() -> None:
            need(mine and model.state in ("running", "cancelling") and epoch == world.epoch)

        def requeue() -> None:
            need(world.holds(model, handle.epoch, handle.attempt) and model.state in ("running", "cancelling"))
            need(epoch == world.epoch)
            if model.state == "cancelling":
                model.state = "cancelled"
                return
            model.failures += uses
            model.state = "failed" if model.failures >= model.max_attempts else "queued"
            model.not_before = now + what % 4

        def end(state: str) -> Callable[[], None]:
            def predict() -> None:
                if mine and model.state == state:
                    return
                need(mine and model.state == "running" and epoch == world.epoch)
                model.state = state

            return predict

        def confirm() -> None:
            if model.state == "cancelled":
                return
            need(mine and model.state == "cancelling" and epoch == world.epoch)
            model.state = "cancelled"

        calls: dict[str, tuple[Callable[[], Any], Callable[[], None]]] = {
            "report": (lambda: store.report(epoch, handle, {"at": now}), report),
            "requeue": (lambda: store.requeue(epoch, handle, now, what % 4, uses, "lost"), requeue),
            "succeed": (lambda: store.succeed(epoch, handle, now, {"at": now}), end("succeeded")),
            "fail": (lambda: store.fail(epoch, handle, now, FAILURE), end("failed")),
            "confirm": (lambda: store.confirm_cancel(epoch, handle, now), confirm),
        }
        expect(world, *calls[action])

    return act


def open_plan(world: World, who: int, which: int, what: int) -> None:
    if not world.handles:
        return
    handle, epoch = world.handle(which), world.coordinator(who)
    head = world.heads[handle.tenant]
    version = head.version - (what % 6 == 0)

    def predict() -> None:
        need(version == head.version and epoch == world.epoch)
        head.plan_of = handle.job_id

    plan = Plan(job_id=handle.job_id, base_version=version, task_ids=("t",), rule="mean")
    expect(world, lambda: world.store.open_plan(epoch, handle.tenant, "s", plan), predict)


def advance(world: World, who: int, which: int, what: int) -> None:
    if not world.handles:
        return
    handle, epoch = world.handle(which), world.coordinator(who)
    model, head = world.jobs[handle.job_id], world.heads[handle.tenant]
    if which % 4 and head.plan_of != handle.job_id:
        open_plan(world, who, which, 1)
    version = max(head.version + (1, 1, 1, 1, 1, 1, 0, 2)[what % 8], 1)
    finishes = what % 3 == 0

    def predict() -> None:
        if head.version == version and head.plan_of is None:
            return
        need(head.version == version - 1 and head.plan_of == handle.job_id)
        need(world.holds(model, epoch, handle.attempt) and model.state == "running" and epoch == world.epoch)
        head.version, head.plan_of = version, None
        if finishes:
            model.state = "succeeded"

    result = {"version": version} if finishes else None
    found = pointer(version, handle.job_id, f"digest-{version}")
    expect(
        world,
        lambda: world.store.advance(epoch, handle.tenant, "s", found, handle.attempt, world.now, result),
        predict,
    )


ACTIONS: dict[str, Callable[[World, int, int, int], None]] = {
    "take_charge": take_charge,
    "create": create,
    "cancel": of_user("cancel"),
    "suspend": of_user("suspend"),
    "start": start,
    "give_up": give_up,
    "report": of_holder("report"),
    "requeue": of_holder("requeue"),
    "succeed": of_holder("succeed"),
    "fail": of_holder("fail"),
    "confirm": of_holder("confirm"),
    "open_plan": open_plan,
    "advance": advance,
}
COMMON = [
    "create",
    "create",
    "start",
    "start",
    "start",
    "start",
    "start",
    "open_plan",
    "open_plan",
    "advance",
    "advance",
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*ACTIONS, *COMMON, "requeue"]), st.integers(0, 7), st.integers(0, 40), st.integers(0, 29)
    ),
    min_size=40,
    max_size=70,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_whatever_happens_the_store_agrees_with_the_model(
    store: JobStore, steps: list[tuple[str, int, int, int]]
) -> None:
    world = World(store, f"{next(EXAMPLES)}.")
    take_charge(world, 0)
    for tenant in TENANTS:
        new_study(store, world.epoch, world.prefix + tenant)
        world.heads[world.prefix + tenant] = Lineage()
    for name, who, which, what in steps:
        world.now += 1
        ACTIONS[name](world, who, which, what)
    found = {job.job_id: job for job in check_invariants(store, world.prefix)}
    assert {
        job_id: (job.tenant, job.state, job.attempt, job.failures, job.suspended, job.epoch)
        for job_id, job in found.items()
    } == {
        job_id: (job.tenant, job.state, job.attempt, job.failures, job.suspended, job.epoch)
        for job_id, job in world.jobs.items()
    }
    for tenant, lineage in world.heads.items():
        head = store.head(tenant, "s")
        assert (head.version, head.plan.job_id if head.plan else None) == (lineage.version, lineage.plan_of)


# All at once


WEIGHTS = [0.3, 12, 2, 4, 30, 0.5, 8, 8, 3, 1, 8, 8, 30]
"""Of the actions, in their order."""


@dataclass
class Seen:
    """What threads were told. Lists are only ever appended to."""

    created: list[Job] = field(default_factory=list)
    handles: list[Job] = field(default_factory=list)
    ended: list[Job] = field(default_factory=list)
    advanced: list[tuple[str, int, str]] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)


def one_thread(store: JobStore, seen: Seen, seed: int, steps: int, together: threading.Barrier) -> int:
    """Random operations; returns how many were carried out."""
    chance = random.Random(seed)
    together.wait()
    did = 0
    for step in range(steps):
        now = 1000.0 + step
        coordinator = chance.choice(seen.epochs[-2:])
        job = chance.choice(seen.created[-8:]) if seen.created else None
        handle = chance.choice(seen.handles[-5:]) if seen.handles else None
        action = chance.choices(list(ACTIONS), WEIGHTS)[0]
        found: Job | None = None
        try:
            if action == "take_charge":
                seen.epochs.append(store.take_charge(f"thread {seed}"))
            elif action == "create":
                new = Job(
                    tenant=chance.choice(TENANTS),
                    study="s",
                    job_id=f"{next(seen.numbers):06d}",
                    spec=SPECS[0],
                    queue_deadline_s=500.0,
                    created_s=now,
                )
                found = store.create_job(new, f"request-{chance.randrange(200)}", QUOTA)
                seen.created.append(found)
            elif job is not None and action == "cancel":
                found = store.cancel_job(job.tenant, "s", job.job_id, now)
            elif job is not None and action == "suspend":
                found = store.suspend_job(job.tenant, "s", job.job_id, chance.random() < 0.3)
            elif job is not None and action == "start":
                found = store.start(coordinator, job, now, 0, QUOTA)
                seen.handles.append(found)
            elif job is not None and action == "give_up":
                found = store.give_up(coordinator, job, now, FAILURE)
            elif handle is None:
                continue
            elif action == "report":
                found = store.report(coordinator, handle, {"by": seed, "step": step})
            elif action == "requeue":
                found = store.requeue(coordinator, handle, now, 0.0, chance.random() < 0.5, "lost")
            elif action == "succeed":
                found = store.succeed(coordinator, handle, now, {"by": seed, "step": step})
            elif action == "fail":
                found = store.fail(coordinator, handle, now, FAILURE)
            elif action == "confirm":
                found = store.confirm_cancel(coordinator, handle, now)
            elif action == "open_plan":
                version = store.head(handle.tenant, "s").version
                plan = Plan(job_id=handle.job_id, base_version=version, task_ids=(), rule="mean")
                store.open_plan(coordinator, handle.tenant, "s", plan)
            else:
                version = store.head(handle.tenant, "s").version + 1
                plan = Plan(job_id=handle.job_id, base_version=version - 1, task_ids=(), rule="mean")
                store.open_plan(coordinator, handle.tenant, "s", plan)
                digest = f"{seed}-{step}"
                result = {"by": seed} if chance.random() < 0.2 else None
                store.advance(
                    coordinator,
                    handle.tenant,
                    "s",
                    pointer(version, handle.job_id, digest),
                    handle.attempt,
                    now,
                    result,
                )
                seen.advanced.append((handle.tenant, version, digest))
            did += 1
        except (ConflictError, QuotaError):
            pass
        if found is not None and found.state.is_terminal:
            seen.ended.append(found)
    return did


def test_whatever_threads_do_at_once_the_store_stays_sound(store: JobStore) -> None:
    seen = Seen(epochs=[store.take_charge("first")])
    for tenant in TENANTS:
        new_study(store, seen.epochs[0], tenant)
    together = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        did = sum(pool.map(lambda seed: one_thread(store, seen, seed, 500, together), range(6)))
    assert did > 100
    final = {job.job_id: job for job in check_invariants(store)}
    assert len(seen.ended) > 10 and len(seen.advanced) > 5
    for job in seen.ended:  # nobody was told of an end that did not last
        assert final[job.job_id] == job
    made = [
        (tenant, found.version, found.digest)
        for tenant in TENANTS
        for found in reversed(store.list_priors(tenant, "s", 1000, "").items)
        if found.version
    ]
    assert sorted(seen.advanced) == sorted(made)
    assert sorted(seen.epochs) == list(range(1, store.epoch() + 1))
