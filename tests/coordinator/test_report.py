from io import StringIO
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from rich.console import Console
from scipy import stats

from common.errors import InvalidInputError
from common.space.genotype import Genotype, GenotypeEdge, derive
from common.space.primitives import PRIMITIVES, PROFILES
from common.space.topology import Topology
from coordinator.cell_layout import Box, lay_out
from coordinator.drawing import cells_figure, op_label
from coordinator.report import (
    DOTS_PER_INCH,
    Panel,
    curves_figure,
    draw_cells,
    draw_curves,
    intervals_by_step,
    mean_interval,
    paired_interval,
    results_table,
)

SHORT_NAMES = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}


def cell(text: str) -> tuple[tuple[GenotypeEdge, ...], ...]:
    """`op source, op source | ...`, one group per node."""

    def edge(pair: str) -> GenotypeEdge:
        name, source = pair.split()
        return GenotypeEdge(primitive=SHORT_NAMES[name], source=int(source))

    return tuple(tuple(edge(pair) for pair in node.split(",")) for node in text.split("|"))


# The genotypes released with BASE; half of their nodes take both ops from one source.
CIFAR_TUNED = Genotype(
    cells={
        "normal": cell("skip 0, dil3 1 | max 0, dil5 0 | max 0, sep5 0 | max 1, dil5 1"),
        "reduction": cell("sep3 0, sep5 0 | max 0, sep3 0 | skip 0, avg 3 | max 1, skip 2"),
    }
)
IMAGENET = Genotype(
    cells={
        "normal": cell("skip 0, max 1 | avg 0, sep5 1 | sep5 0, dil5 3 | sep5 0, sep5 2"),
        "reduction": cell("max 0, sep5 0 | max 0, avg 0 | sep5 2, dil5 2 | avg 0, sep5 3"),
    }
)


def random_genotype(num_nodes: int, seed: int) -> Genotype:
    topology, primitives = Topology(num_nodes), PROFILES["base+"]
    uniform = np.ones((topology.num_edges, len(primitives)))
    kinds = {"normal": uniform, "reduction": uniform}
    return derive(kinds, topology, primitives, "sample", seed)


DRAWN = [
    pytest.param(CIFAR_TUNED, id="cifar-tuned"),
    pytest.param(IMAGENET, id="imagenet"),
    *(
        pytest.param(random_genotype(nodes, seed), id=f"{nodes}-nodes-{seed}")
        for nodes in range(1, 7)
        for seed in range(2)
    ),
]


def panel(title: str = "Digits, 10-way, 4 tasks", shift: float = 0.0, chance: float | None = 0.1) -> Panel:
    spread = np.array([[-0.04], [0.0], [0.0], [0.04]])
    return Panel(
        title,
        (1, 5, 20),
        {
            "prior": np.array([0.5, 0.8, 0.9]) + spread + shift,
            "from scratch": np.array([0.2, 0.3, 0.6]) + spread + shift,
        },
        chance,
    )


def rendered(table) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()


def texts(figure: Figure, prefix: str) -> list[Text]:
    return [text for axes in figure.axes for text in axes.texts if (text.get_gid() or "").startswith(prefix)]


# Intervals


def test_mean_interval_matches_hand_worked_numbers():
    # mean 2, standard deviation 1, three tasks: half-width 4.302653 / sqrt(3)
    interval = mean_interval(np.array([[1.0], [2.0], [3.0]]))
    assert interval.mean == pytest.approx([2.0])
    assert interval.low == pytest.approx([2.0 - 2.4841377], abs=1e-6)
    assert interval.high == pytest.approx([2.0 + 2.4841377], abs=1e-6)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_mean_interval_matches_scipy(confidence):
    values = np.random.default_rng(0).random((11, 4))
    interval = mean_interval(values, confidence)
    low, high = stats.t.interval(confidence, 10, loc=values.mean(0), scale=stats.sem(values, axis=0))
    np.testing.assert_allclose(interval.low, low)
    np.testing.assert_allclose(interval.high, high)


def test_one_task_has_a_mean_and_no_limits():
    interval = mean_interval(np.array([[0.25, 0.75]]))
    assert interval.mean.tolist() == [0.25, 0.75]
    assert np.isnan(interval.low).all()
    assert np.isnan(interval.high).all()


def test_paired_interval_takes_the_difficulty_of_tasks_out():
    difficulty = np.array([[0.0], [0.3], [0.6]])
    first, second = difficulty + 0.1, difficulty
    interval = paired_interval(first, second)
    assert interval.mean == pytest.approx([0.1])
    assert interval.high - interval.low == pytest.approx([0.0], abs=1e-12)
    assert (mean_interval(first).high - mean_interval(first).low)[0] > 1.0


def test_paired_interval_is_the_interval_of_the_differences():
    first, second = np.random.default_rng(1).random((2, 6, 3))
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    interval = paired_interval(first, second)
    np.testing.assert_allclose(interval.low, low)
    np.testing.assert_allclose(interval.high, high)


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        (np.zeros(3), 0.95, "shape"),
        (np.zeros((0, 3)), 0.95, "shape"),
        (np.array([[0.1, np.nan]]), 0.95, "finite"),
        (np.zeros((2, 1)), 1.0, "confidence"),
        (np.zeros((2, 1)), 95, "confidence"),
    ],
)
def test_mean_interval_rejects(values, confidence, message):
    with pytest.raises(InvalidInputError, match=message):
        mean_interval(values, confidence)


def test_paired_interval_rejects_unequal_shapes():
    with pytest.raises(InvalidInputError, match=r"\(3, 2\) and \(4, 2\)"):
        paired_interval(np.zeros((3, 2)), np.zeros((4, 2)))


@pytest.mark.parametrize(
    ("steps", "arms", "chance", "message"),
    [
        ((), {"a": np.zeros((1, 0))}, None, "ascending"),
        ((5, 1), {"a": np.zeros((1, 2))}, None, "ascending"),
        ((-1, 1), {"a": np.zeros((1, 2))}, None, "not negative"),
        ((1, 5), {}, None, "at least one arm"),
        ((1, 5), {"a": np.zeros((1, 3))}, None, r"\(num_tasks, 2\), got \(1, 3\)"),
        ((1, 5), {"a": np.zeros((0, 2))}, None, "num_tasks"),
        ((1, 5), {"a": np.array([[0.5, 84.0]])}, None, "from 0 to 1"),
        ((1, 5), {"a": np.array([[0.5, np.nan]])}, None, "from 0 to 1"),
        ((1, 5), {"a": np.zeros((1, 2))}, 10.0, "chance"),
    ],
)
def test_panel_rejects(steps, arms, chance, message):
    with pytest.raises(InvalidInputError, match=message):
        Panel("Digits", steps, arms, chance)


# Table


def test_table_has_a_row_per_arm_and_a_column_per_step():
    table = results_table([panel()])
    assert table.title == "Digits, 10-way, 4 tasks"
    assert [column.header for column in table.columns] == ["Adaptation steps", "1", "5", "20"]
    # standard deviation sqrt(2 * 0.04^2 / 3), four tasks, t = 3.182446: half-width 0.052
    assert [list(column.cells) for column in table.columns] == [
        ["prior", "from scratch"],
        ["0.50 ± 0.05", "0.20 ± 0.05"],
        ["0.80 ± 0.05", "0.30 ± 0.05"],
        ["0.90 ± 0.05", "0.60 ± 0.05"],
    ]


def test_table_shows_chosen_steps_of_several_panels():
    late = Panel("Glyphs, 1 task", (5, 50), {"prior": np.array([[0.25, 0.75]])})
    table = results_table([panel(), late], steps=(20, 50))
    text = rendered(table)
    assert table.row_count == 5
    assert "Digits, 10-way, 4 tasks" in text
    assert [list(column.cells) for column in table.columns[1:]] == [
        ["", "0.90 ± 0.05", "0.60 ± 0.05", "", "-"],
        ["", "-", "-", "", "0.75"],
    ]


def test_table_rejects_steps_nobody_measured():
    with pytest.raises(InvalidInputError, match="after 7 steps"):
        results_table([panel()], steps=(5, 7))


@pytest.mark.parametrize("show", [results_table, curves_figure])
def test_no_panels_is_an_error(show):
    with pytest.raises(InvalidInputError, match="at least one panel"):
        show([])


# Curves


def test_curves_show_means_bands_and_chance_in_percent():
    figure = curves_figure([panel(), panel("Fashion-MNIST", shift=0.02, chance=None)])
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["Digits, 10-way, 4 tasks", "Fashion-MNIST"]
    assert first.get_shared_y_axes().joined(first, second)
    prior, scratch, chance = first.lines
    np.testing.assert_allclose(prior.get_ydata(), [50, 80, 90])
    np.testing.assert_allclose(scratch.get_ydata(), [20, 30, 60])
    np.testing.assert_allclose(chance.get_ydata(), [10, 10])
    assert len(first.collections) == 2
    assert len(second.lines) == 2
    assert "(%)" in first.get_ylabel()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["prior", "from scratch", "95% interval", "chance"]


def test_arms_differ_in_more_than_colour_and_keep_their_style_over_panels():
    values = np.full((2, 2), 0.5)
    full = Panel("full", (1, 5), dict.fromkeys("abcdef", values))
    part = Panel("part", (1, 5), dict.fromkeys("fa", values))
    figure = curves_figure([full, part])

    def style(line):
        return line.get_color(), line.get_linestyle(), line.get_marker()

    styles = [style(line) for line in figure.axes[0].lines]
    assert len({colour for colour, _, _ in styles}) == 6
    assert len({(line, marker) for _, line, marker in styles}) == 6
    assert [style(line) for line in figure.axes[1].lines] == [styles[5], styles[0]]


def test_a_single_task_is_drawn_without_a_band():
    figure = curves_figure([Panel("one", (1, 5), {"prior": np.array([[0.5, 0.6]])})])
    assert len(figure.axes[0].collections) == 0
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["prior"]


@pytest.mark.parametrize(
    ("steps", "scale"),
    [((0, 1, 2, 5, 10, 50), "log"), (tuple(range(0, 301, 10)), ""), ((3,), ""), ((0,), "")],
)
def test_steps_are_ticks_that_do_not_overlap(steps, scale):
    figure = curves_figure([Panel("any", steps, {"prior": np.full((2, len(steps)), 0.5)})])
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    assert scale in axis.get_label_text()
    assert axis.get_majorticklocs()[0] == steps[-1]
    boxes = [label.get_window_extent() for label in axis.get_majorticklabels()]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_legend_stays_within_the_figure():
    names = [f"an arm with quite a long name, number {index}" for index in range(5)]
    figure = curves_figure([Panel("any", (1, 5), {name: np.full((2, 2), 0.5) for name in names})])
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_a_long_title_stays_over_its_panel():
    title = "Scripts that no class of meta-training was written in, 10-way, 20 images each, 8 tasks"
    figure = curves_figure([panel(title), panel(title)])
    figure.canvas.draw()
    first, second = (axes.title.get_window_extent() for axes in figure.axes)
    assert not first.overlaps(second)
    assert second.x1 <= figure.bbox.width


# Cells


@pytest.mark.parametrize("genotype", DRAWN)
def test_every_op_has_a_label_of_its_own(genotype):
    labels = {text.get_gid(): text.get_text() for text in texts(cells_figure(genotype), "op/")}
    assert labels == {
        f"op/{kind}/{node + 2}/{index}": op_label(edge.primitive)
        for kind, nodes in genotype.cells.items()
        for node, edges in enumerate(nodes)
        for index, edge in enumerate(edges)
    }


@pytest.mark.parametrize("genotype", DRAWN)
def test_texts_neither_overlap_nor_leave_the_picture(genotype):
    figure = cells_figure(genotype, "The architecture adapted to one unseen task, with a rather long title")
    figure.canvas.draw()
    everything = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    boxes = [text.get_window_extent() for text in everything]
    boxes.append(figure.legends[0].get_window_extent())
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


@pytest.mark.parametrize("genotype", DRAWN)
def test_labels_fit_their_frames(genotype):
    figure = cells_figure(genotype)
    figure.canvas.draw()
    for axes in figure.axes:
        frames = [patch.get_window_extent() for patch in axes.patches]
        for text in axes.texts:
            if text.get_gid():
                box = text.get_window_extent()
                assert any(
                    frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
                    for frame in frames
                )


def contains(box: Box, points: np.ndarray) -> bool:
    slack = 1e-6
    inside = (abs(points - [box.x, box.y]) < [box.width / 2 - slack, box.height / 2 - slack]).all(axis=1)
    return bool(inside.any())


def sampled(points: np.ndarray) -> np.ndarray:
    """Points along cubic Bézier pieces, by de Casteljau's definition."""
    t = np.linspace(0, 1, 25)[:, None]
    pieces = [points[start : start + 4] for start in range(0, len(points) - 1, 3)]
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    return np.concatenate([sum(w * p for w, p in zip(weights, piece, strict=True)) for piece in pieces])


@pytest.mark.parametrize("genotype", DRAWN)
def test_boxes_keep_apart_and_arrows_touch_only_their_own(genotype):
    widths = dict.fromkeys(PRIMITIVES, 1.1)
    for nodes in genotype.cells.values():
        layout = lay_out(nodes, widths)
        boxes = [*layout.nodes, *(route.label for route in layout.routes if route.label)]
        for a, b in combinations(boxes, 2):
            apart = max(abs(a.x - b.x) - (a.width + b.width) / 2, abs(a.y - b.y) - (a.height + b.height) / 2)
            assert apart > 0.1
        for route in layout.routes:
            path = sampled(route.points)
            assert np.all(np.diff(path[:, 0]) > -1e-9)
            source, target = layout.nodes[route.source], layout.nodes[route.target]
            assert path[0, 0] == pytest.approx(source.x + source.width / 2)
            assert path[-1, 0] == pytest.approx(target.x - target.width / 2)
            assert abs(path[0, 1] - source.y) < source.height / 2
            assert abs(path[-1, 1] - target.y) < target.height / 2
            assert not any(contains(box, path) for box in boxes if box is not route.label)
            assert route.label is None or contains(route.label, path)


def test_ops_of_one_source_are_separate_arrows():
    routes = lay_out(cell("max 0, dil5 0"), dict.fromkeys(PRIMITIVES, 1.0)).routes
    first, second = (sampled(route.points) for route in routes[:2])
    middle = slice(5, -5)
    assert (abs(first[middle, 1] - second[middle, 1]) > 0.05).all()


def test_a_node_with_many_ops_is_drawn():
    many = tuple(GenotypeEdge(source=source, primitive=name) for source in (0, 1) for name in PRIMITIVES[1:])
    layout = lay_out((many,), dict.fromkeys(PRIMITIVES, 1.0))
    assert len([route for route in layout.routes if route.label]) == 2 * len(PRIMITIVES[1:])


def test_layout_is_reproducible():
    widths = dict.fromkeys(PRIMITIVES, 1.0)
    first, second = (lay_out(IMAGENET.cells["normal"], widths) for _ in range(2))
    assert first.nodes == second.nodes


@pytest.mark.parametrize(
    ("primitive", "label"),
    [("sep_conv_5x5", "sep conv 5×5"), ("skip_connect", "skip"), ("conv_7x1_1x7", "conv 7×1 1×7")],  # noqa: RUF001
)
def test_op_label(primitive, label):
    assert op_label(primitive) == label


def test_op_labels_and_colours_cover_every_op_and_stay_apart():
    labels = [op_label(name) for name in PRIMITIVES]
    assert len(set(labels)) == len(labels)
    all_ops = tuple(GenotypeEdge(source=0, primitive=name) for name in PRIMITIVES if name != "none")
    names = [text.get_text() for text in cells_figure(Genotype(cells={"normal": (all_ops,)})).legends[0].get_texts()]
    assert len(names) == 6


# Files


def test_files_have_the_figures_size_and_show_their_input(tmp_path):
    draw_cells(CIFAR_TUNED, tmp_path / "new" / "cifar.png", "CIFAR-10")
    draw_cells(IMAGENET, str(tmp_path / "imagenet.png"), "ImageNet")
    draw_curves([panel()], tmp_path / "curves.png")
    draw_curves([panel(shift=0.03)], tmp_path / "shifted.png")
    pictures = {
        name: np.asarray(Image.open(tmp_path / name).convert("L"))
        for name in ("new/cifar.png", "imagenet.png", "curves.png", "shifted.png")
    }
    for name, figure in {
        "new/cifar.png": cells_figure(CIFAR_TUNED, "CIFAR-10"),
        "curves.png": curves_figure([panel()]),
    }.items():
        width, height = DOTS_PER_INCH * figure.get_size_inches()
        assert pictures[name].shape == pytest.approx((height, width), abs=1)
    assert all(picture.std() > 10 for picture in pictures.values())
    assert pictures["curves.png"].shape == pictures["shifted.png"].shape
    assert (pictures["curves.png"] != pictures["shifted.png"]).any()


def test_the_same_input_draws_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        draw_cells(IMAGENET, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_suffix_chooses_the_format(tmp_path):
    draw_cells(IMAGENET, tmp_path / "cells.svg")
    assert "op/reduction/5/1" in (tmp_path / "cells.svg").read_text()
    with pytest.raises(InvalidInputError, match=r"cells\.bmp2"):
        draw_cells(IMAGENET, tmp_path / "cells.bmp2")


def test_intervals_by_step_hold_the_numbers_of_the_mean_intervals() -> None:
    values = np.array([[0.2, 0.5], [0.4, 0.7], [0.6, 0.6]])
    found = intervals_by_step(Panel("", (1, 5), {"arm": values}))
    interval = mean_interval(values)
    assert list(found) == ["arm"] and list(found["arm"]) == ["1", "5"]
    assert found["arm"]["5"] == {
        "mean": pytest.approx(0.6),
        "low": pytest.approx(float(interval.low[1])),
        "high": pytest.approx(float(interval.high[1])),
    }
