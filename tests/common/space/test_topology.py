"""Cell topology: numbering of edges, against a plain enumeration."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidInputError
from common.space.topology import NUM_CELL_INPUTS, CellEdge, Topology

num_nodes = st.integers(1, 16)


def test_base_cell_has_fourteen_edges_numbered_node_by_node():
    expected = [
        (0, 0), (0, 1),
        (1, 0), (1, 1), (1, 2),
        (2, 0), (2, 1), (2, 2), (2, 3),
        (3, 0), (3, 1), (3, 2), (3, 3), (3, 4),
    ]  # fmt: skip
    topology = Topology(4)
    assert [(edge.node, edge.source) for edge in topology.edges] == expected
    assert topology.num_edges == 14


@pytest.mark.parametrize(("nodes", "edges"), [(1, 2), (2, 5), (3, 9), (4, 14), (5, 20)])
def test_number_of_edges(nodes, edges):
    assert Topology(nodes).num_edges == edges
    assert len(Topology(nodes).edges) == edges


def test_edges_into_each_node_of_the_base_cell():
    topology = Topology(4)
    assert [list(topology.edges_into(node)) for node in range(4)] == [
        [0, 1],
        [2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11, 12, 13],
    ]


def test_edges_from_each_source_of_the_base_cell():
    topology = Topology(4)
    assert [topology.edges_from(source) for source in range(6)] == [
        (0, 2, 5, 9),  # cell input 0 feeds every node
        (1, 3, 6, 10),
        (4, 7, 11),  # node 0 feeds nodes 1 to 3
        (8, 12),
        (13,),
        (),  # the last node feeds no other node
    ]


@given(num_nodes)
def test_edges_into_partition_the_edges_and_list_sources_in_order(nodes):
    topology = Topology(nodes)
    numbers = [index for node in range(nodes) for index in topology.edges_into(node)]
    assert numbers == list(range(topology.num_edges))
    for node in range(nodes):
        edges = [topology.edges[index] for index in topology.edges_into(node)]
        assert edges == [CellEdge(node, source) for source in range(NUM_CELL_INPUTS + node)]


@given(num_nodes)
def test_edges_from_partition_the_edges(nodes):
    topology = Topology(nodes)
    numbers = [index for source in range(NUM_CELL_INPUTS + nodes) for index in topology.edges_from(source)]
    assert sorted(numbers) == list(range(topology.num_edges))


@given(num_nodes)
def test_edges_ascend_and_never_run_backwards(nodes):
    edges = Topology(nodes).edges
    assert list(edges) == sorted(set(edges))
    assert all(0 <= edge.source < NUM_CELL_INPUTS + edge.node for edge in edges)


@pytest.mark.parametrize("nodes", [0, -1])
def test_a_cell_without_nodes_is_refused_by_field_value_and_remedy(nodes):
    with pytest.raises(InvalidInputError, match=rf"num_nodes must be >= 1, got {nodes}; set space.num_nodes"):
        Topology(nodes)


def test_equal_topologies_are_equal_values():
    used = Topology(3)
    assert used.edges  # caches
    assert used == Topology(3)
    assert hash(used) == hash(Topology(3))
    assert used != Topology(2)


def test_a_topology_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Topology(3).num_nodes = 4
