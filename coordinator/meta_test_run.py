"""A meta-test from its plan to its result: whatever episodes its folder lacks are learnt."""

from collections.abc import Callable, Sequence
from pathlib import Path

from common.config import StudyConfig
from common.messages import AdaptRequest
from common.meta.prior import Prior
from common.storage import ArtifactFolder
from coordinator.meta_test import (
    RESULT,
    MetaTestPlan,
    MetaTestResult,
    begin,
    episode_request,
    read_episodes,
    summarise,
)
from workers.data.arrays import ClassArrays
from workers.environment import environment

Learn = Callable[[Sequence[AdaptRequest], int], bool]
"""Learns the episodes of requests, adds each to the log in the test's folder as it ends, and says whether all did; told
how many had ended before."""


def run_meta_test(
    folder: Path,
    plan: MetaTestPlan,
    prior: Prior,
    config: StudyConfig,
    arrays: ClassArrays,
    num_episodes: int,
    learn: Learn,
) -> MetaTestResult | None:
    """Learns the episodes that are missing, and stores what all of them found.

    Args:
        folder: of the test; made where missing.
        plan: what is tested.
        prior: likewise.
        config: of its study.
        arrays: the images of the plan's family.
        num_episodes: in all.
        learn: not called where none is missing.

    Returns:
        The result; None where `learn` was interrupted, and another call goes on.

    Raises:
        ConflictError: the folder's test is of something else.
        CorruptArtifactError: a file in it is damaged.
    """
    artifacts = ArtifactFolder(folder)
    begin(artifacts, plan)
    found = read_episodes(artifacts, plan)
    missing = [number for number in range(num_episodes) if number not in found]
    if missing:
        requests = [episode_request(plan, prior, config, arrays, number) for number in missing]
        if not learn(requests, num_episodes - len(missing)):
            return None
        found = read_episodes(artifacts, plan)
    result = summarise(plan, [found[number] for number in range(num_episodes)], environment())
    artifacts.write(RESULT, result.model_dump_json(indent=2).encode())
    return result
