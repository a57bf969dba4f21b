"""Several trainings on a pool: slices go on, lost workers cost an attempt, mistakes end it."""

import logging
import os
import time

import pytest

from common.config import ClusterConfig, DatasetRef
from common.errors import AdaptationError, InvalidInputError
from common.evaluate_config import load_evaluate_config
from common.messages import EvaluateRequest, EvaluateResult
from common.space.released import DARTS_V2
from coordinator.calls import Outcome
from coordinator.evaluations import attempts_in, evaluate_all
from coordinator.pool import RayPool


class Script:
    """Answers each call with what is next for its key."""

    def __init__(self, **answers):
        self.answers = {key: list(of_key) for key, of_key in answers.items()}
        self.waiting, self.urls, self.was_given_up = [], [], False

    @property
    def num_pending(self):
        return len(self.waiting)

    def submit(self, key, request, prior):
        assert prior is None
        self.waiting.append(key)
        self.urls.append(request.result_url)

    def poll(self, timeout_s):
        key = self.waiting.pop(0)
        answer = self.answers[key].pop(0)
        if answer == "lost":
            return [Outcome(key, lost="the worker died")]
        if isinstance(answer, Exception):
            return [Outcome(key, error=answer)]
        return [Outcome(key, EvaluateResult(key, 1, {"accuracy": 0.5} if answer == "done" else None, ()))]

    def give_up(self):
        self.was_given_up = True


def request(key, folder):
    config = load_evaluate_config("smoke")
    return EvaluateRequest(key, 1, DARTS_V2, config, DatasetRef(source="digits"), None, f"{folder}/{key}", 1.0)


def test_slices_go_on_in_their_folder_until_all_are_done(tmp_path):
    calls, done = Script(a=["slice", "done"], b=["done"]), []
    found = evaluate_all(calls, [request("a", tmp_path), request("b", tmp_path)], 2, on_result=done.append)
    assert sorted(found) == ["a", "b"]
    assert [result.job_id for result in done] == ["b", "a"]
    assert calls.urls == [f"{tmp_path}/a/attempt-1", f"{tmp_path}/b/attempt-1", f"{tmp_path}/a/attempt-1"]
    assert calls.was_given_up


def test_a_lost_worker_costs_an_attempt_with_a_folder_of_its_own(tmp_path):
    calls = Script(a=["lost", "done"])
    evaluate_all(calls, [request("a", tmp_path)], 2)
    assert calls.urls == [f"{tmp_path}/a/attempt-1", f"{tmp_path}/a/attempt-2"]


def test_a_later_call_begins_another_attempt_beside_the_earlier_ones(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / "a" / f"attempt-{number}").mkdir(parents=True)
    assert [url.rpartition("-")[2] for url in attempts_in(f"{tmp_path}/a")] == ["1", "2", "10"]
    calls = Script(a=["done"])
    evaluate_all(calls, [request("a", tmp_path)], 2)
    assert calls.urls == [f"{tmp_path}/a/attempt-11"]


def test_too_many_lost_workers_and_mistakes_end_it(tmp_path):
    with pytest.raises(AdaptationError, match="2 times"):
        evaluate_all(Script(a=["lost", "lost"]), [request("a", tmp_path)], 2)
    calls = Script(a=[InvalidInputError("too few images")], b=["done"])
    with pytest.raises(InvalidInputError, match="a: too few images"):
        evaluate_all(calls, [request("a", tmp_path), request("b", tmp_path)], 2)
    assert calls.was_given_up


def test_stopped_it_returns_what_there_is(tmp_path):
    answers = iter([False, True])
    calls = Script(a=["done"], b=["done"])
    found = evaluate_all(calls, [request("a", tmp_path), request("b", tmp_path)], 2, lambda: next(answers))
    assert list(found) == ["a"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_workers_train_side_by_side(tmp_path):
    pool = RayPool(f"evaluations-{os.getpid()}", 2, 0.0, ClusterConfig(), time.monotonic, logging.getLogger("test"))
    config = load_evaluate_config("smoke", ["epochs=2", "train_per_class=10", "test_per_class=5"])
    requests = [
        EvaluateRequest(key, 1, DARTS_V2, config, DatasetRef(source="digits"), None, f"{tmp_path}/{key}", 60.0)
        for key in ("a", "b")
    ]
    try:
        found = evaluate_all(pool, requests, 1)
    finally:
        pool.close()
    assert {result.summary["epochs"] for result in found.values()} == {2}
    assert found["a"].summary["accuracy"] == found["b"].summary["accuracy"]
    assert all((tmp_path / key / "attempt-1" / "manifest.json").is_file() for key in ("a", "b"))
