from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.errors import ConfigError
from hpcserve.launcher.layout import infer_layout


def layout(**given):
    names = ("tp", "pp", "dp", "nodes", "gpus_per_node", "node_gpus")
    return infer_layout(
        **{name: given.get(name) for name in names}, on_gpus=given.get("on_gpus", True)
    )


@pytest.mark.parametrize(
    ("given", "nodes", "per_node", "tp"),
    [
        ({}, 1, 1, 1),
        ({"tp": 16, "nodes": 2}, 2, 8, 16),  # `hpcserve submit --nodes 2 --tp 16`
        ({"tp": 16}, 2, 8, 16),
        ({"tp": 16, "node_gpus": 4}, 4, 4, 16),
        ({"tp": 4, "pp": 2, "gpus_per_node": 4}, 2, 4, 4),
        ({"nodes": 2, "gpus_per_node": 8}, 2, 8, 16),  # tp is what is missing
        ({"nodes": 2, "gpus_per_node": 8, "pp": 2}, 2, 8, 8),
        ({"tp": 2, "dp": 4}, 1, 8, 2),
    ],
)
def test_the_missing_factor_is_inferred(given, nodes, per_node, tp):
    found = layout(**given)
    assert (found.nodes, found.gpus_per_node, found.tp) == (nodes, per_node, tp)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tp": 16, "nodes": 3}, ["16 GPUs", "3 nodes", "1, 2, 4, 8, 16"]),
        (
            {"tp": 16, "nodes": 2, "gpus_per_node": 4},
            ["= 16 GPUs", "2 nodes x 4 GPUs = 8", "--tp 8"],
        ),
        ({"tp": 16, "nodes": 1, "node_gpus": 8}, ["needs 16", "have 8", "2, 4, 8, 16"]),
        ({"tp": 6, "gpus_per_node": 4}, ["= 6 GPUs", "nodes of 4", "1, 2, 3, 6"]),
        ({"pp": 3, "nodes": 2, "gpus_per_node": 8}, ["16", "pp 3"]),
    ],
)
def test_what_does_not_come_out_is_refused_with_the_choices(given, words):
    with pytest.raises(ConfigError) as error:
        layout(**given)
    for word in words:
        assert word in str(error.value)


def test_crossing_nodes_by_tp_is_warned_of():
    assert "--tp 8 --pp 2" in layout(tp=16, nodes=2).warning
    assert layout(tp=8, pp=2).warning == ""


def test_cpus_ask_for_no_gpus():
    found = layout(tp=2, nodes=2, on_gpus=False)
    assert (found.nodes, found.ranks_per_node, found.gpus_per_node) == (2, 1, 0)


sizes = st.one_of(st.none(), st.integers(1, 16))


@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_product_always_comes_out(tp, pp, dp, nodes, gpus_per_node, node_gpus):
    try:
        found = layout(
            tp=tp, pp=pp, dp=dp, nodes=nodes, gpus_per_node=gpus_per_node, node_gpus=node_gpus
        )
    except ConfigError:
        return
    assert found.tp * found.pp * found.dp == found.nodes * found.gpus_per_node
    for asked, got in ((tp, found.tp), (pp, found.pp), (dp, found.dp), (nodes, found.nodes)):
        assert asked in (None, got)
    assert node_gpus is None or found.gpus_per_node <= node_gpus
