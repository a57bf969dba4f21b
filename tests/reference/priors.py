"""Priors and updates small enough to work out by hand, and random ones of any study's shape."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from common.config import StudyConfig, validate
from common.loading import load
from common.messages import AdaptRequest, AdaptResult, Evaluation, LocalUpdate, MetaGradient, Update
from common.meta.prior import ADAM_FIRST_PREFIX, ADAM_SECOND_PREFIX, ALPHA, LOG_SIGMA_PREFIX, Prior
from common.streams import stream

TINY_OPS = ("skip_connect", "sep_conv_3x3")
TINY_EXAMPLES = 10  # num_ways * train_per_class: the number of images that weighs 1


def tiny_config(
    rounds: int = 5, normalisation: str = "edge", few_shot: Mapping[str, object] | None = None, **outer: object
) -> StudyConfig:
    """One kind of cell, one node, two ops: two edges, four architecture logits; heads of 16 and 32 pixels."""
    return validate(
        {
            "rounds": rounds,
            "space": {
                "num_nodes": 1,
                "primitives": TINY_OPS,
                "cell_kinds": {"normal": 1},
                "normalisation": normalisation,
            },
            "network": {"channels": 2, "cells": ["normal"], "heads": {16: 4, 32: 4}},
            "families": [
                {"data": {"source": "digits"}, "image_size": 16, "num_ways": 2, "train_per_class": 5},
            ],
            "few_shot": few_shot,
            "outer": outer,
        }
    )


def smoke_config(*overrides: str) -> StudyConfig:
    """The smoke preset, whatever the environment says."""
    return load("smoke", overrides, environment={})


def tiny_prior(probabilities: Sequence[float] = (0.5, 0.5, 0.25, 0.75), version: int = 0, **vectors: object) -> Prior:
    """A prior for `tiny_config` whose vectors fit on a line; `vectors` adds to them or replaces them."""
    values = {
        "body": [1.0, 2.0, 3.0],
        "head/16": [0.5, -0.5],
        "head/32": [4.0, 8.0],
        ALPHA: np.log(probabilities),
        **vectors,
    }
    return Prior(version, 1.0, {name: np.asarray(vector, np.float32) for name, vector in values.items()})


def tiny_update(
    task_id: str,
    body: Sequence[float] = (0.0, 0.0, 0.0),
    head: Sequence[float] = (0.0, 0.0),
    size: int = 16,
    probabilities: Sequence[float] = (0.5, 0.5, 0.25, 0.75),
    num_examples: int = TINY_EXAMPLES,
    version: int = 0,
) -> LocalUpdate:
    """An update to `tiny_prior`."""
    return LocalUpdate(
        task_id=task_id,
        version=version,
        num_examples=num_examples,
        differences={"body": np.float32(body), f"head/{size}": np.float32(head)},
        alpha=np.log(probabilities).astype(np.float32),
    )


def random_update(
    prior: Prior, task_id: str, seed: int = 0, size: int = 16, num_examples: int = 30, scale: float = 0.1
) -> LocalUpdate:
    """An acceptable update of the shape of `prior`, with a number of its own for each (seed, task)."""

    def normal(name: str) -> np.ndarray:
        draw = stream(seed, task_id, name).normal(size=prior.vectors[name].shape)
        return (scale * draw).astype(np.float32)

    names = ("body", f"head/{size}")
    scales = {name: LOG_SIGMA_PREFIX + name for name in names if LOG_SIGMA_PREFIX + name in prior.vectors}
    return LocalUpdate(
        task_id=task_id,
        version=prior.version,
        num_examples=num_examples,
        differences={name: normal(name) for name in names},
        alpha=prior.vectors[ALPHA] + 10 * normal(ALPHA),
        log_sigma={name: prior.vectors[stored] + normal(stored) for name, stored in scales.items()},
    )


def few_shot_prior(version: int = 0, with_moments: bool = True, **vectors: object) -> Prior:
    """A prior for `tiny_config` with `few_shot`: one head, the classifier of two classes and two features, moments."""
    plain = tiny_prior(version=version, classifier=[0.1, -0.1, 0.2, -0.2, 0.0, 0.0], **vectors)
    learnt = {name: plain.vectors[name] for name in ("body", "head/16", "classifier", ALPHA)}
    prefixes = (ADAM_FIRST_PREFIX, ADAM_SECOND_PREFIX) if with_moments else ()
    moments = {prefix + name: np.zeros_like(vector) for name, vector in learnt.items() for prefix in prefixes}
    return replace(plain, vectors={**learnt, **moments})


def random_meta_gradient(
    prior: Prior, task_id: str, seed: int = 0, num_examples: int = TINY_EXAMPLES, scale: float = 0.1
) -> MetaGradient:
    """An acceptable meta-gradient of the shape of `prior`, with a number of its own for each (seed, task)."""
    gradients = {
        name: (scale * stream(seed, task_id, name).normal(size=prior.vectors[name].shape)).astype(np.float32)
        for name in prior.learnt_names
    }
    return MetaGradient(task_id, prior.version, num_examples, gradients)


def result_of(update: Update | None, task_id: str, losses: Sequence[float] = (2.0, 1.0)) -> AdaptResult:
    """The result that carries `update`, as a worker would send it."""
    probabilities: Mapping[str, np.ndarray] = {}
    return AdaptResult(task_id, update, probabilities, tuple(losses), (Evaluation(0, 0.5, 1.0),), 0.5, 100.0)


def results_for(prior: Prior, requests: Sequence[AdaptRequest], seed: int = 0) -> list[AdaptResult]:
    """A made-up result for each request, without any training."""
    return [
        result_of(
            random_update(prior, request.task.task_id, seed, request.task.image_size),
            request.task.task_id,
            losses=(3.0 + number, 1.0 + number),
        )
        for number, request in enumerate(requests)
    ]


def few_shot_results(prior: Prior, requests: Sequence[AdaptRequest]) -> list[AdaptResult]:
    """A made-up result of a few-shot task for each request, without any training."""
    return [result_of(random_meta_gradient(prior, request.task.task_id), request.task.task_id) for request in requests]
