"""Pareto fronts: dominance by hand, limits that hold, folders that go on, and the drawing."""

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from reference.latency_tables import latency_table

from common.config import DatasetRef, NetworkConfig, SpaceConfig, StudyConfig, TaskFamily
from common.cost import network_cost
from common.errors import ConflictError, CorruptArtifactError, InvalidInputError
from common.latency import network_ms
from common.network_config import network_config
from common.nn.counting import count_network
from common.storage import ArtifactFolder
from common.tasks import LearningTask
from coordinator.front_figure import draw_front, front_figure
from coordinator.html_report.collect import collect
from coordinator.html_report.page import page
from coordinator.pareto import (
    FRONT,
    AdaptedAccuracy,
    Front,
    FrontPoint,
    Origin,
    ParetoPlan,
    begin,
    default_limits,
    find_points,
    marked,
    posterior_bytes,
    posterior_name,
    read_posterior,
    with_accuracy,
)

OPS = ("none", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")
SPACE = SpaceConfig(primitives=OPS, num_nodes=2)
CONFIG = StudyConfig(
    space=SPACE,
    network=NetworkConfig(channels=4, cells=("normal", "reduction"), heads={16: 4}),
    families=(TaskFamily(image_size=16),),
)
TASK = LearningTask(task_id="adapt", data=DatasetRef(source="digits"), classes=("0", "1", "2"), image_size=16)
TABLE = latency_table(OPS[1:], lambda name, shape: len(name) * (3 - shape.stride) / 10)
FULL = network_config("cifar", channels=4, num_cells=5, num_classes=3, image_size=16)


def plan(**changes: Any) -> ParetoPlan:
    fields: dict[str, Any] = {
        "prior": "ab",
        "task": TASK,
        "steps": 3,
        "measure": "macs",
        "network": None,
        "table": None,
        "limits": None,
        "target": None,
        "recipe": None,
    }
    return ParetoPlan(**(fields | changes))


def posterior(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {kind: random.dirichlet(np.ones(4), SPACE.topology.num_edges) for kind in SPACE.cell_kinds}


def points_of(*values: tuple[int, float]) -> list[FrontPoint]:
    genotype = find_points(plan(), (), [posterior(0)], CONFIG)[0].genotype
    return [
        FrontPoint(
            genotype=genotype,
            origins=(Origin(weight=0, limit=None),),
            probability=0.5,
            num_params=1,
            num_macs=cost,
            accuracy=accuracy,
            interval_95=(accuracy - 0.1, accuracy + 0.1),
        )
        for cost, accuracy in values
    ]


def front_of(points: list[FrontPoint]) -> Front:
    adapted = (AdaptedAccuracy(weight=0, accuracy=0.5, expected=7),)
    return Front(
        measure="macs",
        task="3 classes",
        prior="ab",
        network="a network",
        num_test=9,
        recipe="6 epochs",
        adapted=adapted,
        points=marked(points, "macs"),
    )


def test_a_point_is_dominated_by_one_that_costs_no_more_and_is_no_worse():
    found = marked(points_of((30, 0.7), (10, 0.5), (20, 0.5), (10, 0.4), (30, 0.7), (25, 0.8)), "macs")
    assert [(point.num_macs, point.accuracy, point.is_dominated) for point in found] == [
        (10, 0.5, False),
        (10, 0.4, True),
        (20, 0.5, True),
        (25, 0.8, False),
        (30, 0.7, True),
        (30, 0.7, True),
    ]


def test_of_two_equal_points_neither_dominates():
    assert not any(point.is_dominated for point in marked(points_of((10, 0.5), (10, 0.5)), "macs"))


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"measure": "params"}, lambda g: network_cost(g, SPACE, CONFIG.network, 16, 3).num_params),
        ({"measure": "macs"}, lambda g: network_cost(g, SPACE, CONFIG.network, 16, 3).num_macs),
        ({"measure": "macs", "network": FULL}, lambda g: count_network(g, FULL).total.num_macs),
        ({"measure": "latency", "table": TABLE, "network": TABLE.network}, lambda g: network_ms(g, TABLE)),
    ],
)
def test_every_point_keeps_the_limits_that_found_it_and_one_posterior_has_no_dominated_point(changes, cost):
    wanted = plan(**changes)
    limits = default_limits(wanted, posterior(1), CONFIG)
    assert len(limits) == 4
    points = find_points(wanted, limits, [posterior(1)], CONFIG)
    assert len(points) > 1
    for point in points:
        assert point.cost(wanted.measure) == pytest.approx(cost(point.genotype), rel=1e-12)
        for origin in point.origins:
            assert origin.limit is None or cost(point.genotype) <= origin.limit
        assert not point.is_dominated, "each is the most probable within its limit"
    assert [p.cost(wanted.measure) for p in points] == sorted(p.cost(wanted.measure) for p in points)
    assert sum(len(point.origins) for point in points) == 5


def test_a_limit_that_nothing_keeps_is_refused():
    with pytest.raises(InvalidInputError, match="max_macs is 1, the smallest network has"):
        find_points(plan(), (1.0,), [posterior(0)], CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": (0.0, 1.0)}, "target: a penalty needs one"),
        ({"measure": "latency"}, "table: the measure latency needs one"),
        ({"weights": (1.0, 0.0), "target": 3}, "weights: must be ascending"),
        ({"limits": (2.0, 2.0)}, "limits: must be ascending and different"),
    ],
)
def test_plans_that_lack_something_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        plan(**changes)


def test_a_weight_of_zero_presses_nothing_and_others_press_the_measure():
    wanted = plan(measure="latency", table=TABLE, network=FULL, weights=(0.0, 2.0), target=5)
    assert wanted.penalty(0.0) is None
    penalty = wanted.penalty(2.0)
    assert penalty is not None
    assert (penalty.measure, penalty.target, penalty.weight, penalty.table) == ("latency", 5, 2, TABLE)


def test_a_folder_goes_on_with_its_plan_and_with_no_other(tmp_path):
    folder = ArtifactFolder(tmp_path)
    begin(folder, plan())
    begin(folder, plan())
    with pytest.raises(ConflictError, match="a front of another steps"):
        begin(folder, plan(steps=4))
    assert read_posterior(folder, 0, SPACE) is None
    folder.write(posterior_name(0), posterior_bytes(posterior(3), 0.25))
    stored = read_posterior(folder, 0, SPACE)
    assert stored is not None
    assert stored[1] == 0.25
    assert all(np.array_equal(stored[0][kind], posterior(3)[kind]) for kind in SPACE.cell_kinds)
    folder.write(posterior_name(1), b'{"accuracy": 1, "probabilities": {"normal": [[1]], "reduction": [[1]]}}')
    with pytest.raises(CorruptArtifactError, match="another shape; remove it"):
        read_posterior(folder, 1, SPACE)


def test_a_trained_points_quality_is_its_accuracy():
    point = find_points(plan(), (), [posterior(0)], CONFIG)[0]
    assert point.quality == point.probability
    trained = with_accuracy(point, {"accuracy": 0.75, "interval_95": [0.5, 0.9]})
    assert (trained.quality, trained.interval_95) == (0.75, (0.5, 0.9))


def test_the_drawing_has_each_point_with_its_interval_at_its_place(tmp_path):
    front = front_of(points_of((10, 0.5), (20, 0.4), (30, 0.8)))
    axis = front_figure(front).axes[0]
    on_front, dominated = axis.containers
    assert on_front[0].get_xydata().tolist() == [[10, 50], [30, 80]]
    assert dominated[0].get_xydata().tolist() == [[20, 40]]
    (segments,) = dominated[2]
    assert segments.get_segments()[0].tolist() == [[20, pytest.approx(30)], [20, pytest.approx(50)]]
    draw_front(front, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_of_a_front_shows_every_point_and_escapes_its_words(tmp_path):
    front = front_of(points_of((10, 0.5), (20, 0.4), (30, 0.8))).model_copy(update={"task": "<b>cats</b>"})
    (tmp_path / FRONT.name).write_text(front.model_dump_json())
    text = page(collect(tmp_path))
    assert "Pareto front of one prior" in text
    assert "2 of 3 points are on the front" in text
    assert text.count("<strong>on the front</strong>") == 2
    assert "40.0 % to 60.0 %" in text
    assert "<b>cats" not in text
    assert "&lt;b&gt;cats" in text
    (tmp_path / FRONT.name).write_text("{}")
    with pytest.raises(CorruptArtifactError, match=r"pareto\.json is damaged"):
        collect(tmp_path)


def test_an_untrained_front_shows_log_probabilities(tmp_path):
    points = find_points(plan(), default_limits(plan(), posterior(1), CONFIG), [posterior(1)], CONFIG)
    front = front_of(list(points))
    (tmp_path / FRONT.name).write_text(front.model_dump_json())
    text = page(collect(tmp_path))
    assert "Log probability (nats)" in text
    assert f"{math.log(points[0].probability):.4g}" in text
