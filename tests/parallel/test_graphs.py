"""The path of captured decode steps, on CPUs: the same text, one graph for all replicas in step."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hpcserve import SamplingParams
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


async def _texts(options: dict, prompts: list[list[int]]) -> list[list[int]]:
    config = EngineConfig.from_options(options)
    async with await EngineClient.open(config, module="graph_core") as client:
        outputs = await asyncio.gather(*(client.complete(one, GREEDY) for one in prompts))
        # One alone: with replicas, the others replay graphs of padding.
        outputs.append(await client.complete(prompts[3], GREEDY))
        return [output.outputs[0].token_ids for output in outputs]


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
def test_text_is_that_of_one(kit, folder_of, expected, monkeypatch, capfd, model_type, layout):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    options = {"model": str(folder_of(model_type)), **kit.options, **layout}
    found = asyncio.run(asyncio.wait_for(_texts(options, kit.prompts), 300))
    wanted = expected(model_type)[: len(kit.prompts)]
    assert found == [*wanted, wanted[3]]
    # Both ranks of every step: the last request alone takes 15.
    replays = capfd.readouterr().err.count("replayed")
    assert replays >= 2 * 15 and replays % 2 == 0
