"""Charts and cells as SVG: places worked out by hand, every value in the table, nothing said by colour alone."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from common.space.genotype import GenotypeEdge
from common.space.released import RELEASED
from coordinator.drawing import TIMES, op_label
from coordinator.html_report import charts
from coordinator.html_report.axes import evenly, nice_ticks, percent
from coordinator.html_report.cells import cell_figure
from coordinator.html_report.charts import Line, cividis, heatmap, line_chart, path_chart, stacked_bars
from coordinator.html_report.markup import Markup, element, joined, text
from coordinator.html_report.pca import principal_components

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "<script>alert('1')</script> & \"co\""


def parsed(figure):
    """The figure as XML, and its drawing."""
    root = ElementTree.fromstring(figure)
    drawing = next(each for each in root.iter(f"{SVG}svg") if each.get("role") == "img")
    return root, drawing


def points_of(shape):
    return [tuple(float(part) for part in pair.split(",")) for pair in shape.get("points").split()]


def with_class(root, name):
    return [each for each in root.iter() if name in (each.get("class") or "").split()]


def table_rows(root):
    return [[" ".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def test_markup_escapes_everything_but_markup():
    assert text(NASTY) == "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt; &amp; &quot;co&quot;"
    made = element("p", NASTY, element("b", "x"), title=NASTY, class_="a", aria_label=None, x=1.234, y=2)
    root = ElementTree.fromstring(made)
    assert root.text == NASTY and root.get("title") == NASTY and root.find("b").text == "x"
    assert (root.get("class"), root.get("x"), root.get("y"), root.get("aria-label")) == ("a", "1.23", "2", None)
    assert joined("<", Markup("<i></i>")) == "&lt;<i></i>"


def test_markup_replaces_characters_that_no_page_may_hold():
    assert text("a\x00b\x1bc\ud800") == "a\ufffdb\ufffdc\ufffd"


def test_ticks_are_round_numbers_that_cover_the_span():
    assert nice_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(0.42, 2.31) == [0.5, 1.0, 1.5, 2.0]
    assert nice_ticks(-30.0, 70.0) == [-20.0, 0.0, 20.0, 40.0, 60.0]
    assert nice_ticks(0.0, 14.0) == [0.0, 5.0, 10.0]


def test_even_choice_keeps_both_ends():
    assert evenly(3, 5) == [0, 1, 2]
    assert evenly(50, 4) == [0, 16, 33, 49]
    assert evenly(1, 2) == [0]


def test_colours_go_from_pale_to_dark_monotonously():
    assert cividis(0.0) == "#fff7d4" and cividis(1.0) == "#00224e"
    channels = [[int(cividis(share)[place : place + 2], 16) for place in (1, 3, 5)] for share in np.linspace(0, 1, 50)]
    luminances = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in channels]
    assert all(a > b for a, b in pairwise(luminances))


def test_lines_and_bands_are_where_their_values_are():
    line = Line("accuracy", [0.0, 0.5, 1.0], [0.0, 0.4, 0.9], [0.1, 0.6, 1.0])
    _, drawing = parsed(line_chart("c", "Step", "A", [0, 1, 2], [line], percent, (0.0, 1.0)))
    (drawn,) = drawing.iter(f"{SVG}polyline")
    left, right = charts.LEFT + 6, charts.WIDTH - charts.RIGHT - 6
    bottom, top = charts.HEIGHT - charts.BOTTOM, charts.TOP
    middle = (left + right) / 2, (bottom + top) / 2
    assert points_of(drawn) == [(left, bottom), middle, (right, top)]
    (band,) = with_class(drawing, "band")
    tenth = (bottom - top) / 10
    expected = [
        (left, bottom - tenth),
        (middle[0], bottom - 6 * tenth),
        (right, top),
        (right, top + tenth),
        (middle[0], bottom - 4 * tenth),
        (left, bottom),
    ]
    assert np.allclose(points_of(band), expected, atol=0.006)


def test_a_gap_parts_a_line_and_is_a_dash_in_the_table():
    values = [1.0, 2.0, math.nan, 3.0, 4.0]
    root, drawing = parsed(line_chart("c", "Round", "Loss", range(5), [Line("a", values), Line("b", values)]))
    assert [len(points_of(each)) for each in drawing.iter(f"{SVG}polyline")] == [2, 2, 2, 2]
    assert table_rows(root)[3] == ["2", "-", "-"]


def test_lines_differ_by_dashes_and_markers_too():
    lines = [Line(f"l{index}", [0.0, 1.0 + index]) for index in range(4)]
    _, drawing = parsed(line_chart("c", "Round", "Loss", [0, 1], lines))
    styles = [each.get("class") for each in drawing.iter(f"{SVG}polyline")]
    assert len({re.search(r"d\d", style)[0] for style in styles}) == 4
    shapes = {(each.tag, each.get("class").split()[-1] == "hollow") for each in with_class(drawing, "marker")}
    assert len(shapes) >= 3


def test_a_line_of_a_single_value_or_of_equal_values_can_be_drawn():
    for values in ([2.0], [0.0, 0.0], [math.nan, math.nan]):
        figure = line_chart("c", "Round", "Loss", range(1, len(values) + 1), [Line("Loss", values)])
        assert "nan" not in str(figure) and parsed(figure)


def ticks_of(drawing):
    return ["".join(each.itertext()) for each in with_class(drawing, "tick") if each.get("text-anchor") == "end"]


def test_ticks_tell_values_apart_and_noise_does_not_fill_a_chart():
    _, drawing = parsed(line_chart("c", "Round", "Nats", [1, 2], [Line("a", [2.19722, 2.19721])]))
    assert ticks_of(drawing) == ["2.196", "2.197", "2.198", "2.199"]
    _, drawing = parsed(line_chart("c", "Round", "Nats", [1, 2], [Line("a", [1.0, 1.0004])]))
    assert len(set(ticks_of(drawing))) == len(ticks_of(drawing)) >= 3


def test_level_is_named_in_the_legend():
    root, drawing = parsed(
        line_chart("c", "Step", "A", [0, 1], [Line("A", [0.1, 0.9])], percent, (0, 1), level=("chance", 0.1))
    )
    (level,) = with_class(drawing, "level")
    assert float(level.get("y1")) == pytest.approx(198 - 0.1 * (198 - 22), abs=0.006)
    assert "chance" in ["".join(each.itertext()) for each in root.iter("li")]


def test_bars_stack_to_the_total():
    shares = {"pool": [3.0, 1.0], "conv": [1.0, 0.0], "skip": [0.0, 3.0]}
    root, drawing = parsed(stacked_bars("c", "Round", "Edges", [1, 2], shares))
    bars = list(drawing.iter(f"{SVG}rect"))
    heights = [float(each.get("height")) for each in bars]
    full = charts.HEIGHT - charts.BOTTOM - charts.TOP
    assert heights == pytest.approx([0.75 * full, 0.25 * full, 0.25 * full, 0.75 * full], abs=0.02)
    titles = [each.find(f"{SVG}title").text for each in bars]
    assert titles == ["Round 1, pool: 3", "Round 1, conv: 1", "Round 2, pool: 1", "Round 2, skip: 3"]
    assert table_rows(root)[1:] == [["1", "3", "1", "0"], ["2", "1", "0", "3"]]
    assert len(with_class(drawing, "hatch")) == 1  # conv; its neighbours are plain


def test_many_bars_are_thinned_out_and_the_caption_says_so():
    root, drawing = parsed(stacked_bars("c", "Round", "Edges", range(1, 201), {"pool": [1.0] * 200}))
    assert len(list(drawing.iter(f"{SVG}rect"))) == charts.MOST_BARS
    assert "50 of 200 bars" in root.find("figcaption").text
    assert len(table_rows(root)) == 201


def test_heatmap_writes_every_value_and_its_colour():
    values = np.array([[0.0, 0.25], [0.5, 0.125]])
    root, drawing = parsed(heatmap("c", ["0→0", "1→0"], ["pool", "conv"], values, top=0.5))
    fields = [each for each in drawing.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    assert [each.get("fill") for each in fields] == [cividis(share) for share in (0.0, 0.5, 1.0, 0.25)]
    assert [each.text for each in with_class(drawing, "field")] == ["0", "25", "50", "12"]
    assert table_rows(root)[1:] == [["0→0", "0.0 %", "25.0 %"], ["1→0", "50.0 %", "12.5 %"]]


def test_path_marks_its_ends_and_names_its_points():
    points = np.array([[0.0, 0.0], [1.0, 2.0], [4.0, 1.0]])
    root, drawing = parsed(path_chart("c", "x", "y", ["7", "8", "9"], points))
    assert [each.tag.removeprefix(SVG) for each in with_class(drawing, "marker")] == ["rect", "circle", "polygon"]
    written = ["".join(each.itertext()) for each in drawing.iter(f"{SVG}text")]
    assert {"7", "8", "9"} <= set(written)
    assert table_rows(root)[1:] == [["7", "0", "0"], ["8", "1", "2"], ["9", "4", "1"]]


@pytest.mark.parametrize(
    "make",
    [
        lambda name: line_chart(name, name, name, [0, 1], [Line(name, [0, 1]), Line("b", [1, 0])], level=(name, 0.5)),
        lambda name: stacked_bars(name, name, name, [1], {name: [1.0]}),
        lambda name: heatmap(name, [name], [name], np.array([[0.5]]), 1.0),
        lambda name: path_chart(name, name, name, [name] * 3, np.eye(3)[:, :2]),
    ],
)
def test_charts_escape_names_and_describe_themselves(make):
    root, drawing = parsed(make(NASTY))
    assert not list(root.iter("script"))
    assert NASTY in drawing.get("aria-label") and NASTY in drawing.find(f"{SVG}title").text
    assert str(make(NASTY)) == str(make(NASTY))


def test_cells_label_every_op_and_keep_parallel_edges_apart():
    nodes = (
        (GenotypeEdge(source=0, primitive="sep_conv_3x3"), GenotypeEdge(source=0, primitive="max_pool_3x3")),
        (GenotypeEdge(source=2, primitive="skip_connect"), GenotypeEdge(source=2, primitive="dil_conv_5x5")),
    )
    root, drawing = parsed(cell_figure("normal", nodes))
    written = ["".join(each.itertext()) for each in drawing.iter(f"{SVG}text")]
    assert written[:4] == [op_label(edge.primitive) for node in nodes for edge in node]
    arrows = [each for each in with_class(drawing, "arrow") if "concatenation" not in each.get("class")]
    assert len({each.get("d") for each in arrows}) == 4
    labels = [each for each in with_class(drawing, "box") if not {"node", "port"} & set(each.get("class").split())]
    assert len({(each.get("x"), each.get("y")) for each in labels}) == 4
    assert table_rows(root)[1] == ["node 0", f"sep conv 3{TIMES}3 of c(k-2) + max pool 3{TIMES}3 of c(k-2)"]
    assert table_rows(root)[2] == ["node 1", f"skip of node 0 + dil conv 5{TIMES}5 of node 0"]


@pytest.mark.parametrize("name", RELEASED)
def test_released_cells_stay_within_their_drawing(name):
    for kind, nodes in RELEASED[name].cells.items():
        _, drawing = parsed(cell_figure(kind, nodes))
        _, _, width, height = (float(part) for part in drawing.get("viewBox").split())
        for box in drawing.iter(f"{SVG}rect"):
            x, y, w, h = (float(box.get(key)) for key in ("x", "y", "width", "height"))
            assert min(x, y) >= 0 and x + w <= width and y + h <= height


def test_principal_components_agree_with_the_singular_value_decomposition():
    vectors = np.random.default_rng(0).normal(size=(6, 40)) * np.linspace(1, 3, 40)
    found = principal_components(list(vectors.astype(np.float64)))
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = left[:, :2] * singular[:2]
    assert np.allclose(np.abs(found.points), np.abs(expected))
    assert np.allclose(found.explained, singular[:2] ** 2 / (singular**2).sum())
    assert all(found.points[np.abs(found.points[:, column]).argmax(), column] > 0 for column in (0, 1))


def test_principal_components_of_a_line_are_its_places():
    direction = np.array([3.0, 4.0], np.float32)
    found = principal_components([place * direction for place in (0.0, 1.0, 3.0)])
    assert np.allclose(np.abs(found.points[:, 0]), np.abs(5 * np.array([-4 / 3, -1 / 3, 5 / 3])))
    assert found.explained == pytest.approx((1.0, 0.0))


def test_equal_vectors_have_no_components():
    found = principal_components([np.ones(4, np.float32)] * 3)
    assert found.explained == (0.0, 0.0) and np.allclose(found.points, 0.0)
