"""A few-shot job: learns classes from a handful of images, labels others, and stores what was learnt.

The folder of the job:
    predictions.json       classes; name, label and probabilities of every query
    weights.safetensors    the adapted vectors, by their names in the prior
    network/               where the study's networks are of one genotype: the adapted one, ready to use, see
                           `common.network_config`
    result.json            all else: architecture and its posterior, losses of the support images, cost
    manifest.json          names, sizes and SHA-256 of all, written last: a result without one is not complete
"""

import math
import time
from collections.abc import Mapping
from typing import Any

from common.errors import AdaptationError
from common.messages import FewShotRequest, JobResult
from common.meta.prior import Prior
from common.storage import ArtifactFolder
from workers.data.handful import Handful, handful_from_bytes
from workers.environment import environment
from workers.results import (
    RESULT,
    WEIGHTS,
    begin_results,
    json_bytes,
    plain,
    weights_bytes,
    write_files,
    write_manifest,
)
from workers.runner import TaskRunner

PREDICTIONS = "predictions.json"
MAX_SHOWN = 100
"""Predictions that travel with the job; the rest is in the file."""


def run_few_shot(runner: TaskRunner, prior: Prior, request: FewShotRequest) -> JobResult:
    """Reads the images, adapts the prior to them, labels the queries, stores everything.

    Args:
        runner: holds what is worth keeping between jobs.
        prior: of the version that the request names.
        request: what to do.

    Raises:
        ConflictError: the prior is of another version.
        UnavailableError: the images cannot be read, or the results not be stored.
        CorruptArtifactError: the file of images does not have its SHA-256.
        AdaptationError: the adaptation diverged.
    """
    raise NotImplementedError


def _images(request: FewShotRequest) -> Handful:
    folder, _, name = request.file.url.rpartition("/")
    assert request.file.sha256 is not None
    return handful_from_bytes(ArtifactFolder(folder).read(name), request.file.sha256, request.file.url)
