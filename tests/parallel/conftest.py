"""A random model small enough to be split over processes of one machine, and what it says."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpcserve import LLM, SamplingParams
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.fake_engine import VOCAB_SIZE, write_byte_tokenizer
from hpcserve.testing import make_random_checkpoint

#: Four query heads on two KV heads: with TP 4, each KV head is held twice.
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
}
OPTIONS = {
    "device": "cpu",
    "cpu_threads": 1,
    "max_total_tokens": 2048,
    "max_running_requests": 6,
    "chunked_prefill_size": 32,
}
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
SEEDED = SamplingParams(
    temperature=0.9,
    top_p=0.9,
    seed=5,
    max_tokens=12,
    ignore_eos=True,
    logprobs=2,
    repetition_penalty=1.2,
)
#: No filter: each rank draws from its own part of the vocabulary.
DRAWN = SamplingParams(temperature=1.0, seed=11, max_tokens=12, ignore_eos=True)
#: More than a step takes together, and longer than a chunk; two share a prefix.
PROMPTS = [list(range(3 + i, 12 + i + 9 * i)) for i in range(7)] + [list(range(3, 40))] * 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These start many processes, which takes long on a machine that is busy."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(400))


@dataclass(frozen=True)
class Kit:
    """What tests of this folder share.

    options: of an engine.  texts: what an engine says.  children: all processes that a process
    started (default: this one), and that those started.
    """

    options: dict[str, Any]
    prompts: list[list[int]]
    texts: Callable[[LLM], list[list[int]]]
    children: Callable[..., list[psutil.Process]]
    wait_until: Callable[..., None]


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit(OPTIONS, PROMPTS, texts, children, wait_until)


def texts(llm: LLM) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, GREEDY) + llm.generate(PROMPTS[:2], SEEDED)
    outputs += llm.generate(PROMPTS[:3], DRAWN)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory) -> Callable[..., Path]:
    @functools.cache
    def make(model_type: str) -> Path:
        folder = make_random_checkpoint(tmp_path_factory.mktemp(model_type), model_type, **SHAPE)
        return write_byte_tokenizer(folder)

    return make


@pytest.fixture(scope="session")
def expected(folder_of) -> Callable[[str], list[list[int]]]:
    """What one process says."""

    @functools.cache
    def make(model_type: str) -> list[list[int]]:
        with LLM(str(folder_of(model_type)), **OPTIONS) as llm:
            return texts(llm)

    return make


@pytest.fixture
def complete(folder_of, monkeypatch) -> Callable[..., list[list[int]]]:
    """(module of a core in this folder, model_type, layout, number of prompts) -> its greedy text of
    each, then once more of the fourth, alone: with replicas, the others have no token then."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)

    async def texts_of(module: str, count: int, options: dict[str, Any]) -> list[list[int]]:
        config = EngineConfig.from_options(options)
        async with await EngineClient.open(config, module=module) as client:
            outputs = await asyncio.gather(
                *(client.complete(one, GREEDY) for one in PROMPTS[:count])
            )
            outputs.append(await client.complete(PROMPTS[3], GREEDY))
            return [output.outputs[0].token_ids for output in outputs]

    def run(
        module: str, model_type: str, layout: dict[str, Any], count: int = len(PROMPTS)
    ) -> list[list[int]]:
        options = {"model": str(folder_of(model_type)), **OPTIONS, **layout}
        return asyncio.run(asyncio.wait_for(texts_of(module, count, options), 300))

    return run


def children(pid: int | None = None) -> list[psutil.Process]:
    return psutil.Process(pid or os.getpid()).children(recursive=True)


def wait_until(condition: Callable[[], Any], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
