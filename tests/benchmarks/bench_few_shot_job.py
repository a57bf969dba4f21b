"""Seconds from submitting a few-shot job to its answer, over gRPC: the first, warm ones, and beside long work.

A service of its own, on this machine: gateway, coordinator and workers as processes. The images are glyphs of unseen
scripts, sent as PNG files; a request holds K support images per class and 15 queries per class.
"""

import io
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from reporting import arguments, console, finish, spread

from common.config import DatasetRef, TaskFamily
from common.loading import load
from coordinator.api.client import SearchClient
from coordinator.api.stubs import search_pb2 as pb
from coordinator.local_service import LocalService, local_settings, local_token
from coordinator.pool import MAX_IN_FLIGHT
from workers.data.episodes import episode_of, sample_task
from workers.data.sources import load_arrays

TASK_SEED = 40_000  # used for nothing but this benchmark
ENDLESS = 1_000_000


@contextmanager
def local_service(folder: Path, workers: int) -> Iterator[SearchClient]:
    """A client of a service that runs in the block."""
    settings = local_settings(folder, listen="127.0.0.1:0")
    token = local_token(settings, folder)
    service = LocalService(settings, logging.getLogger("bench"), folder / "logs", workers=workers)
    service.start()
    try:
        with SearchClient(f"127.0.0.1:{service.port}", token) as client:
            yield client
    finally:
        service.stop()


def seconds_to_answer(
    client: SearchClient, study: str, support: Mapping[str, Sequence[bytes]], queries: Sequence[bytes], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds from submitting to the answer at hand, and of these on the worker, of jobs one after the other."""
    seconds, on_worker = [], []
    for seed in range(repeats):
        started_s = time.perf_counter()
        job = client.wait(client.few_shot(study, support, queries, seed=seed).name)
        seconds.append(time.perf_counter() - started_s)
        assert job.state == pb.JOB_STATE_SUCCEEDED, job
        on_worker.append(job.few_shot_result.seconds)
    return seconds, on_worker


def images_of(family: TaskFamily) -> tuple[dict[str, list[bytes]], list[bytes]]:
    """Support images and queries of an unseen task, as PNG files."""
    arrays = load_arrays(family.data, family.image_size)
    task = sample_task(arrays, family, "unseen", "bench", TASK_SEED)
    episode = episode_of(arrays, task)
    support: dict[str, list[bytes]] = {name: [] for name in task.classes}
    for image, label in zip(episode.train_images, episode.train_labels, strict=True):
        support[task.classes[label]].append(png(image))
    return support, [png(image) for image in episode.test_images]


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of an image (height, width, channel)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def occupy(client: SearchClient, study: str, workers: int) -> list[str]:
    """Long jobs, as many as the workers hold at a time; returns their names once each worker is at work."""
    names = [
        client.submit(study, "digits", num_ways=3, steps=ENDLESS, seed=number).name
        for number in range(MAX_IN_FLIGHT * workers)
    ]
    while sum(client.get_job(name).progress.done > 0 for name in names) < workers:
        time.sleep(0.1)
    return names


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--preset", default="few_shot_smoke")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()

    config = load(options.preset, [], environment={})
    family = config.families[0].model_copy(update={"data": DatasetRef(source="glyphs"), "test_per_class": 15})
    support, queries = images_of(family)
    result: dict[str, object] = {"ways": len(support), "queries": len(queries), "image_size": family.image_size}
    with tempfile.TemporaryDirectory() as folder, local_service(Path(folder), options.workers) as client:
        study = client.create_study("few-shot", preset=options.preset).name
        adapting = client.create_study("long", preset="smoke").name
        client.wait(client.submit(adapting, "digits", num_ways=3, steps=1).name)  # the workers are up
        first, _ = seconds_to_answer(client, study, support, queries, 1)
        warm, on_worker = seconds_to_answer(client, study, support, queries, options.repeats)
        long_jobs = occupy(client, adapting, options.workers)
        busy, busy_on_worker = seconds_to_answer(client, study, support, queries, options.repeats)
        for name in long_jobs:
            client.cancel(name)
    result |= {"first_s": first[0], "warm_s": spread(warm), "warm_on_worker_s": spread(on_worker)}
    result |= {"beside_long_jobs_s": spread(busy), "beside_long_jobs_on_worker_s": spread(busy_on_worker)}
    for name, value in result.items():
        console.print(f"{name}: {value}")
    finish(result, {"task_seed": TASK_SEED}, options.json)


if __name__ == "__main__":
    main()
