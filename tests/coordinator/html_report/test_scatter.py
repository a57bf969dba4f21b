"""Scatter charts: every point is drawn and in the table; names cover neither points nor each other."""

import re
from xml.etree import ElementTree

from coordinator.html_report.scatter import Point, scatter_chart

CLOSE = [Point("first of the two", 10, 26.0), Point("second of the two", 11, 26.0), Point("far", 1000, 20.0)]


def drawn(**options):
    text = scatter_chart(
        "Costs", "days", "error (%)", {"others": CLOSE, "ours": [Point("own", 8, 25.7, 25, 26)]}, **options
    )
    return ElementTree.fromstring(f"<div>{text}</div>"), text


def test_every_point_is_drawn_and_tabled_with_its_limits():
    tree, text = drawn()
    assert sum(element.tag.endswith("circle") for element in tree.iter()) == 3 + 1  # and one in the legend
    cells = [element.text for element in tree.iter() if element.tag == "td"]
    assert cells == ["10", "26", "11", "26", "1000", "20", "8", "25.7 (25 to 26)"]
    assert "own: 8, 25.7" in text


def test_a_logarithmic_axis_has_powers_of_ten():
    tree, _ = drawn(is_log=True)
    names = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert [name for name in names if name in ("1", "10", "100", "1000", "1e+04")] == ["1", "10", "100", "1000"]


def test_names_of_close_points_do_not_cover_each_other():
    tree, _ = drawn(is_log=True, has_names=True)
    spans = []
    for element in tree.iter():
        if element.tag.endswith("text") and re.search("of the two|own|far", element.text or ""):
            width = 6.1 * len(element.text)
            x = float(element.get("x")) - {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor")]
            spans.append((x, x + width, float(element.get("y"))))
    assert len(spans) >= 3
    for index, (left, right, y) in enumerate(spans):
        for other_left, other_right, other_y in spans[index + 1 :]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 12
