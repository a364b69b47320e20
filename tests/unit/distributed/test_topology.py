from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcserve.config.engine import EngineConfig
from hpcserve.config.parallel import ParallelConfig, divisors, split_address
from hpcserve.distributed.topology import Topology, layer_range
from hpcserve.errors import ConfigError


@st.composite
def layouts(draw):
    tp, pp, dp = (draw(st.integers(1, 4)) for _ in range(3))
    dp_attention = dp > 1 and draw(st.booleans())
    experts = tp * (dp if dp_attention else 1)
    nnodes = draw(st.sampled_from(divisors(tp * pp * dp)))
    return ParallelConfig(
        tp_size=tp,
        pp_size=pp,
        dp_size=dp,
        ep_size=draw(st.sampled_from(divisors(experts))),
        enable_dp_attention=dp_attention,
        nnodes=nnodes,
        dist_init_addr="host:1" if nnodes > 1 else None,
    )


@given(layouts())
def test_groups_of_each_kind_split_the_world(config):
    topology = Topology(config)
    world = set(range(config.world_size))
    kinds = [
        (topology.tp_group, config.tp_size),
        (topology.pp_group, config.pp_size),
        (topology.dp_group, config.dp_size),
        (topology.expert_group, config.expert_group_size),
    ]
    for group_of, size in kinds:
        groups = {group_of(rank) for rank in world}
        assert all(len(group) == size for group in groups)
        assert sorted(rank for group in groups for rank in group) == sorted(world)
        assert all(rank in group_of(rank) for rank in world)


@given(layouts())
def test_places_are_the_ranks(config):
    topology = Topology(config)
    for rank in range(config.world_size):
        place = topology.place(rank)
        assert topology.rank(place.dp_rank, place.pp_rank, place.tp_rank) == rank
        assert topology.tp_group(rank)[place.tp_rank] == rank
        assert topology.pp_group(rank)[place.pp_rank] == rank
        assert topology.dp_group(rank)[place.dp_rank] == rank
        assert rank in topology.replica(place.dp_rank)
        assert topology.on_node(place.node_rank)[place.local_rank] == rank


@given(layouts())
def test_every_slice_of_every_expert_is_held_once(config):
    topology = Topology(config)
    slices = config.expert_group_size // config.expert_size
    for rank in range(config.world_size):
        held = {
            (topology.place(one).ep_rank, topology.place(one).expert_tp_rank)
            for one in topology.expert_group(rank)
        }
        assert held == {(e, t) for e in range(config.expert_size) for t in range(slices)}


@given(layouts())
def test_one_rank_of_the_last_stage_answers(config):
    topology = Topology(config)
    for dp_rank in range(config.dp_size):
        rank = topology.output_rank(dp_rank)
        place = topology.place(rank)
        assert (place.dp_rank, place.pp_rank, place.tp_rank) == (dp_rank, config.pp_size - 1, 0)
        assert topology.core_node(dp_rank) <= place.node_rank


@given(st.integers(1, 100), st.integers(1, 8))
def test_stages_share_the_layers(num_layers, num_stages):
    ranges = [layer_range(num_layers, stage, num_stages) for stage in range(num_stages)]
    assert [layer for one in ranges for layer in one] == list(range(num_layers))
    sizes = [len(one) for one in ranges]
    assert max(sizes) - min(sizes) <= 1 and sizes[-1] == min(sizes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tp_size": 0}, ["tp_size is 0"]),
        ({"tp_size": 6, "ep_size": 4}, ["ep_size 4", "tp_size = 6", "1, 2, 3, 6"]),
        (
            {"tp_size": 2, "dp_size": 3, "ep_size": 4, "enable_dp_attention": True},
            ["tp_size x dp_size = 6", "1, 2, 3, 6"],
        ),
        ({"enable_dp_attention": True}, ["--dp 2"]),
        ({"tp_size": 4, "ep_size": 2, "enable_expert_parallel": True}, ["ep_size 4", "2"]),
        (
            {"tp_size": 2, "pp_size": 3, "nnodes": 4, "dist_init_addr": "a:1"},
            ["tp_size 2 x pp_size 3 x dp_size 1 = 6", "nnodes 4", "1, 2, 3, 6"],
        ),
        ({"tp_size": 2, "nnodes": 2}, ["--dist-init-addr HOST:PORT"]),
        ({"tp_size": 2, "nnodes": 2, "dist_init_addr": "here"}, ["'here'", "HOST:PORT"]),
        (
            {"tp_size": 2, "nnodes": 2, "node_rank": 2, "dist_init_addr": "a:1"},
            ["node_rank 2", "0 to 1"],
        ),
        ({"watchdog_timeout": 0}, ["watchdog_timeout"]),
        ({"tp_size": 2, "moe_dispatch": "alltoall"}, ["moe_dispatch", "--enable-dp-attention"]),
        (
            {"dp_size": 2, "enable_dp_attention": True, "moe_dispatch": "deepep"},
            ["'deepep'", "allgather, alltoall"],
        ),
    ],
)
def test_what_cannot_be_names_the_numbers_and_the_choices(options, words):
    with pytest.raises(ConfigError) as raised:
        ParallelConfig(**options)
    assert [word for word in words if word not in str(raised.value)] == []


def test_both_dialects():
    ours = EngineConfig.from_options({"tp": 2, "pp": 3, "dp": 4, "ep": 2}).parallel
    theirs = EngineConfig.from_options(
        {
            "tensor_parallel_size": 2,
            "pipeline_parallel_size": 3,
            "data_parallel_size": 4,
            "expert_parallel_size": 2,
        }
    ).parallel
    assert ours == theirs == ParallelConfig(tp_size=2, pp_size=3, dp_size=4, ep_size=2)


def test_expert_parallel_takes_all_that_may_hold_experts():
    assert ParallelConfig(tp_size=4, enable_expert_parallel=True).expert_size == 4
    wide = ParallelConfig(
        tp_size=2, dp_size=2, enable_expert_parallel=True, enable_dp_attention=True
    )
    assert wide.expert_size == 4


def test_addresses():
    assert split_address("node-1:29500") == ("node-1", 29500)
    assert split_address("[::1]:29500") == ("::1", 29500)
