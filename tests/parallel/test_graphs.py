"""The path of captured decode steps, on CPUs: the same text, one graph for all replicas in step."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("model_type", "layout"),
    [
        ("qwen3", {"tp": 2}),
        ("qwen3", {"pp": 2}),
        ("qwen3_moe", {"dp": 2, "ep": 2, "enable_dp_attention": True}),
        ("qwen3_moe", {"dp": 2, "ep": 2, "enable_dp_attention": True, "enable_overlap": True}),
        ("qwen3_moe", {"dp": 2, "enable_dp_attention": True, "moe_dispatch": "alltoall"}),
    ],
)
def test_text_is_that_of_one(kit, complete, expected, capfd, model_type, layout):
    found = complete("graph_core", model_type, layout)
    wanted = expected(model_type)[: len(kit.prompts)]
    assert found == [*wanted, wanted[3]]
    # Both ranks of every step: the last request alone takes 15.
    replays = capfd.readouterr().err.count("replayed")
    assert replays >= 2 * 15 and replays % 2 == 0
