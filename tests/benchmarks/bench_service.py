"""What the service costs beside bare gRPC: submitting jobs, hearing of changes, listing.

A bare grpc.aio server, which answers every call with the bytes of a fixed response, is the yardstick. Gateways and
echo are processes of their own, asked in turn by one client in this process, which does the same work for both.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc import aio
from reporting import arguments, console, finish, spread

from common.config import DatasetRef
from common.tasks import TaskChoice
from coordinator.api.auth import create_token
from coordinator.api.convert import job_message
from coordinator.api.stubs import search_pb2 as pb
from coordinator.api.stubs import search_pb2_grpc
from coordinator.jobs import AdaptSpec, Job
from coordinator.local_service import READY
from coordinator.settings import open_ledger
from coordinator.store.jobs import JobStore
from coordinator.store.records import Quota, new_job_id

IN_FLIGHT = (1, 8, 32)
TENANT, STUDY = "bench", "bench"
NO_QUOTA = Quota(max_queued=10**9)
CREATE = "/metasearch.v1.SearchService/CreateJob"


def response() -> pb.CreateJobResponse:
    """What a real gateway answers, about as long."""
    choice = TaskChoice(data=DatasetRef(source="digits"), classes=("0", "1", "2"), image_size=16)
    job = Job(
        tenant=TENANT,
        study=STUDY,
        job_id=new_job_id(time.time()),
        spec=AdaptSpec(choice=choice, steps=20),
        created_s=time.time(),
    )
    return pb.CreateJobResponse(job=job_message(job))


def request() -> pb.CreateJobRequest:
    """A submission of its own."""
    adapt = pb.AdaptSpec(data=pb.DataSource(builtin="digits"), classes=["0", "1", "2"], steps=20)
    return pb.CreateJobRequest(parent=f"studies/{STUDY}", spec=pb.JobSpec(adapt=adapt), request_id=str(uuid.uuid4()))


async def echo() -> None:
    """The yardstick, as a process: `bench_service.py echo`."""
    fixed = response().SerializeToString()

    async def answer(request: bytes, context: Any) -> bytes:
        return fixed

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(READY + json.dumps({"port": port}), flush=True)
    await server.wait_for_termination()


@contextlib.contextmanager
def process(*command: str) -> Iterator[int]:
    """A server process; yields its port."""
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    try:
        line = next(line for line in child.stdout if line.startswith(READY))
        yield int(json.loads(line.removeprefix(READY))["port"])
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


@contextlib.contextmanager
def redis_server(folder: Path, fsync: str) -> Iterator[str]:
    """A Redis with an append-only file; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir()
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": fsync, "save": ""}
    arguments = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    child = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        child.terminate()
        child.wait(30)


@contextlib.contextmanager
def gateway(folder: Path, store: str) -> Iterator[tuple[int, str]]:
    """A gateway on a store, with a study in it; yields its port and a token."""
    folder.mkdir()
    token = create_token(folder / "tokens.toml", TENANT, "admin")
    settings = folder / "settings.json"
    quota = {"max_queued": 10**9}
    content = {"store": store, "artifacts": str(folder / "artifacts"), "listen": "127.0.0.1:0", "quota": quota}
    settings.write_text(json.dumps({**content, "tokens": str(folder / "tokens.toml")}))
    with process("-m", "coordinator.cli", "serve", "--settings", str(settings)) as port:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)
            stub.CreateStudy(pb.CreateStudyRequest(study_id=STUDY, preset="smoke"), metadata=bearer(token))
        yield port, token


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The header that goes with a call."""
    return (("authorization", f"Bearer {token}"),)


class Target:
    """A server to ask."""

    def __init__(self, port: int, token: str = "none") -> None:
        self.channel = aio.insecure_channel(f"127.0.0.1:{port}")
        self.stub = search_pb2_grpc.SearchServiceStub(self.channel)
        self.metadata = bearer(token)

    async def rate(self, in_flight: int, seconds: float) -> float:
        """CreateJob calls per second with so many in flight."""
        until_s = time.perf_counter() + seconds
        done = 0

        async def submit() -> None:
            nonlocal done
            while time.perf_counter() < until_s:
                await self.stub.CreateJob(request(), metadata=self.metadata)
                done += 1

        started_s = time.perf_counter()
        await asyncio.gather(*(submit() for _ in range(in_flight)))
        return done / (time.perf_counter() - started_s)


async def create_ratios(targets: dict[str, Target], seconds: float, repeats: int) -> dict[str, dict[str, Any]]:
    """Rates over that of the echo, each in turn, pair by pair."""
    found: dict[str, dict[str, list[float]]] = {}
    for target in targets.values():
        await target.rate(8, 0.3)  # connects, fills caches
    for in_flight in IN_FLIGHT:
        for _ in range(repeats):
            bare = await targets["bare"].rate(in_flight, seconds)
            for name, target in targets.items():
                if name != "bare":
                    rate = await target.rate(in_flight, seconds)
                    found.setdefault(name, {}).setdefault(str(in_flight), []).append(rate / bare)
    return {
        name: {count: {"of_bare": spread(np.array(values))} for count, values in of.items()}
        for name, of in found.items()
    }


def fill(store: JobStore, count: int) -> list[Job]:
    """Stores jobs directly."""
    choice = TaskChoice(data=DatasetRef(source="digits"), classes=("0", "1", "2"), image_size=16)
    jobs = []
    for _ in range(count):
        job = Job(
            tenant=TENANT,
            study=STUDY,
            job_id=new_job_id(time.time()),
            spec=AdaptSpec(choice=choice),
            created_s=time.time(),
        )
        store.create_job(job, None, NO_QUOTA)
        jobs.append(job)
    return jobs


async def watch_latency(target: Target, store: JobStore, bare: Target, repeats: int) -> dict[str, Any]:
    """Seconds from a change of state, made in this process, to the watcher's hearing of it; over a bare unary call.

    A change has happened once it is on disk: then the ledger tells its listeners in this process too.
    """
    (job,) = await asyncio.to_thread(fill, store, 1)
    heard: asyncio.Queue[float] = asyncio.Queue()
    happened: list[float] = []

    def note(topic: str | None) -> None:
        if topic == job.job_id:
            happened.append(time.perf_counter())

    async def watch() -> None:
        async for _ in target.stub.WatchJob(pb.WatchJobRequest(name=job.name), metadata=target.metadata):
            heard.put_nowait(time.perf_counter())

    end = store.ledger.subscribe(note)
    watching = asyncio.create_task(watch())
    await heard.get()
    latencies, unary = [], []
    for index in range(repeats):
        started_s = time.perf_counter()
        await bare.stub.CreateJob(request(), metadata=bare.metadata)
        unary.append(time.perf_counter() - started_s)
        happened.clear()
        before_s = time.perf_counter()
        await asyncio.to_thread(store.suspend_job, TENANT, STUDY, job.job_id, index % 2 == 0)
        arrived_s = await heard.get()
        while not happened:  # with Redis the news come by another way
            await asyncio.sleep(0.0005)
        latencies.append((arrived_s - min(happened[0], arrived_s), arrived_s - before_s))
    watching.cancel()
    end()
    after_change, with_commit = np.array(latencies).T
    base = np.array(unary)
    return {
        "p50_of_unary": float(np.median(after_change) / np.median(base)),
        "p99_of_unary": float(np.quantile(after_change, 0.99) / np.quantile(base, 0.99)),
        "p50_with_commit_of_unary": float(np.median(with_commit) / np.median(base)),
        "p50_ms": float(np.median(after_change) * 1e3),
        "p50_with_commit_ms": float(np.median(with_commit) * 1e3),
        "unary_p50_ms": float(np.median(base) * 1e3),
        "unary_p99_ms": float(np.quantile(base, 0.99) * 1e3),
    }


async def pages(target: Target) -> AsyncIterator[float]:
    """Seconds per page of 1,000, to the end of the list."""
    token = ""
    while True:
        started_s = time.perf_counter()
        listing = pb.ListJobsRequest(parent=f"studies/{STUDY}", page_size=1000, page_token=token)
        found = await target.stub.ListJobs(listing, metadata=target.metadata)
        yield time.perf_counter() - started_s
        token = found.next_page_token
        if not token:
            return


async def measure(options: Any, folder: Path) -> dict[str, Any]:
    """Everything, in one run."""
    with contextlib.ExitStack() as stack:
        bare = Target(stack.enter_context(process(__file__, "echo")))
        stores = {"sqlite_full": f"sqlite:{folder / 'full.sqlite'}"}
        if shutil.which("redis-server"):
            for fsync in ("everysec", "always"):
                stores[f"redis_{fsync}"] = stack.enter_context(redis_server(folder / f"redis-{fsync}", fsync))
        else:
            console.print("redis-server is missing: only SQLite is measured")
        targets = {"bare": bare}
        for name, store in stores.items():
            targets[name] = Target(*stack.enter_context(gateway(folder / name, store)))
        create = await create_ratios(targets, options.seconds, options.repeats)

        empty = Target(*stack.enter_context(gateway(folder / "empty", f"sqlite:{folder / 'empty.sqlite'}")))
        full_store = JobStore(open_ledger(f"sqlite:{folder / 'stored.sqlite'}"))
        full = Target(*stack.enter_context(gateway(folder / "stored", f"sqlite:{folder / 'stored.sqlite'}")))
        await asyncio.to_thread(fill, full_store, 10_000)
        for target in (empty, full):
            await target.rate(8, 0.3)
        over = []
        for _ in range(options.repeats):
            first = await empty.rate(8, options.seconds)
            over.append(await full.rate(8, options.seconds) / first)
        watch = {"sqlite_full": await watch_latency(full, full_store, bare, options.watches)}
        if "redis_always" in stores:
            redis_store = JobStore(open_ledger(stores["redis_everysec"]))
            watch["redis_everysec"] = await watch_latency(targets["redis_everysec"], redis_store, bare, options.watches)
            redis_store.ledger.close()
        missing = options.listed - len([job async for job in _counted(full)])
        await asyncio.to_thread(fill, full_store, max(missing, 0))
        listed = np.array([seconds async for seconds in pages(full)])
        full_store.ledger.close()
        for target in (*targets.values(), empty, full):
            await target.channel.close()
    return {
        "create": create,
        "create_at_10k_over_0": spread(np.array(over)),
        "watch": {**watch["sqlite_full"], "by_store": watch},
        "pages": {"num_pages": len(listed), "ms_per_page_of_1000": spread(listed * 1e3)},
    }


async def _counted(target: Target) -> AsyncIterator[int]:
    token = ""
    while True:
        listing = pb.ListJobsRequest(parent=f"studies/{STUDY}", page_size=1000, page_token=token)
        found = await target.stub.ListJobs(listing, metadata=target.metadata)
        for _ in found.jobs:
            yield 1
        token = found.next_page_token
        if not token:
            return


def main() -> None:
    """Prints ratios."""
    if sys.argv[1:] == ["echo"]:
        asyncio.run(echo())
        return
    parser = arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--watches", type=int, default=300)
    parser.add_argument("--listed", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="metasearch-bench-") as folder:
        result = asyncio.run(measure(options, Path(folder)))
    for name, of in result["create"].items():
        ratios = ", ".join(f"{count}: {value['of_bare']['median']:.2f}" for count, value in of.items())
        console.print(f"CreateJob over bare, {name}, by calls in flight: {ratios}")
    console.print(f"with 10,000 jobs stored over none: {result['create_at_10k_over_0']['median']:.2f}")
    for name, of in result["watch"]["by_store"].items():
        console.print(
            f"watch, {name}: {of['p50_ms']:.2f} ms from a change on disk to its watcher, {of['p50_of_unary']:.2f}x "
            f"(p99 {of['p99_of_unary']:.2f}x) a bare unary call; {of['p50_with_commit_ms']:.2f} ms with the commit"
        )
    per_page = result["pages"]["ms_per_page_of_1000"]
    console.print(f"{result['pages']['num_pages']} pages of 1,000: {per_page['median']:.0f} ms each")
    finish(result, {}, options.json)


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    main()
