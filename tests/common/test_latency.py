"""Latency tables: sums worked out by hand, and what is refused."""

import json

import pytest
from reference.latency_tables import latency_table

from common.errors import InvalidInputError, NotFoundError
from common.latency import LatencyTable, OpShape, latency_terms, limit_ns, misfit, network_ms, op_shapes, read_table
from common.network_config import network_config
from common.space.genotype import Genotype, GenotypeEdge

OPS = ("skip_connect", "sep_conv_3x3")


def by_size(name: str, shape: OpShape) -> float:
    """A tenth of a millisecond per pixel column of a separable convolution, and 1 ms for the others' stride of 2."""
    return shape.size / 10 if name == "sep_conv_3x3" else float(shape.stride == 2)


TABLE = latency_table(OPS, by_size)


def cell(*edges: tuple[tuple[int, str], ...]) -> tuple[tuple[GenotypeEdge, ...], ...]:
    return tuple(tuple(GenotypeEdge(source=source, primitive=name) for source, name in node) for node in edges)


def test_a_cifar_network_of_five_cells_has_the_shapes_of_its_cells():
    # Cells: normal 4 x 16, reduction to 8 x 8, normal 8 x 8, reduction to 16 x 4, normal 16 x 4.
    def shape(channels: int, size: int, stride: int) -> OpShape:
        return OpShape(channels=channels, size=size, stride=stride)  # type: ignore[arg-type]

    network = network_config("cifar", channels=4, num_cells=5, image_size=16)
    assert op_shapes(network, 2) == {
        ("normal", True): [shape(4, 16, 1), shape(8, 8, 1), shape(16, 4, 1)],
        ("normal", False): [shape(4, 16, 1), shape(8, 8, 1), shape(16, 4, 1)],
        ("reduction", True): [shape(8, 16, 2), shape(16, 8, 2)],
        ("reduction", False): [shape(8, 8, 1), shape(16, 4, 1)],
    }


def test_an_imagenet_stem_leaves_an_eighth_rounded_up():
    network = network_config("imagenet", channels=4, num_cells=3, image_size=100)
    assert [shape.size for shape in op_shapes(network, 1)["normal", True]] == [13]
    assert [shape.size for shape in op_shapes(network, 1)["reduction", True]] == [13, 7]


def test_the_latency_is_the_sum_of_parts_and_ops():
    genotype = Genotype(
        cells={
            # 16 + 8 + 4 columns: 2.8 ms for each of three; the skip takes nothing at stride 1.
            "normal": cell(((0, "sep_conv_3x3"), (1, "sep_conv_3x3")), ((0, "skip_connect"), (2, "sep_conv_3x3"))),
            # From an input: 16 + 8 columns, 2.4 ms; skips of stride 2, 1 ms in each of two cells; from a node 8 + 4.
            "reduction": cell(((0, "sep_conv_3x3"), (1, "skip_connect")), ((2, "sep_conv_3x3"), (2, "skip_connect"))),
        }
    )
    assert network_ms(genotype, TABLE) == pytest.approx(2 * 0.5 + 3 * 2.8 + 2.4 + 2 + 1.2)


def test_terms_are_whole_nanoseconds():
    terms = latency_terms(latency_table(OPS, lambda name, shape: 1e-6 / 3, part_ms=2e-6))
    assert terms.constant == 4
    assert set(terms.ops.values()) == {0}
    assert limit_ns(0.1 + 0.2) == 300_000
    assert limit_ns(2.9999999e-6) == 2


def test_a_table_survives_json_and_a_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(TABLE.to_json())
    assert read_table(path) == TABLE == LatencyTable.from_json(TABLE.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format"),
        ({"ops": []}, "ops"),
        ({"device": "x" * 201}, "device"),
        ({"colour": "red"}, "colour: no such field"),
        ({"num_nodes": 0}, "num_nodes"),
    ],
)
def test_what_is_no_table_is_refused_with_the_field(change, message):
    with pytest.raises(InvalidInputError, match=message):
        LatencyTable.from_json(json.dumps({**json.loads(TABLE.to_json()), **change}))


def test_a_missing_doubled_or_unknown_time_is_refused():
    content = json.loads(TABLE.to_json())
    first, *others = content["ops"]
    for ops, message in (
        (others, "ops has 0 times of skip_connect with 4 channels, size 16, stride 1"),
        ([first, *content["ops"]], "ops has 2 times of skip_connect"),
        ([*content["ops"], {**first, "primitive": "none"}], "unknown op 'none'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            LatencyTable.from_json(json.dumps({**content, "ops": ops}))
    with pytest.raises(InvalidInputError, match="at most 65536 bytes"):
        LatencyTable.from_json(" " * 65537)


def test_a_file_that_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(NotFoundError, match="metasearch profile --out"):
        read_table(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"bad\.json: latency table: "):
        read_table(tmp_path / "bad.json")


def test_a_table_of_another_space_or_shape_says_why():
    kinds = {"normal": 1, "reduction": 2}
    assert misfit(TABLE, kinds, ("none", *OPS), 2, 16) is None
    assert "lacks max_pool_3x3" in str(misfit(TABLE, kinds, ("max_pool_3x3", *OPS), 2))
    assert "cells of 2 nodes, space.num_nodes is 4" in str(misfit(TABLE, kinds, OPS, 4))
    assert "space.cell_kinds has normal (stride 1)" in str(misfit(TABLE, {"normal": 1}, OPS, 2))
    assert "of images of 16 pixels, the task has 32; profile with --image-size 32" in str(
        misfit(TABLE, kinds, OPS, 2, 32)
    )
