"""`hpcserve bench offline`: all requests at once through an engine in this process's hands."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpcserve.bench.load_point import LoadPoint
from hpcserve.bench.metrics import Figures, figures_of
from hpcserve.bench.record import RequestRecord
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.roofline import Hardware, ModelCost
from hpcserve.bench.selection import Selection
from hpcserve.bench.summary import summarize
from hpcserve.bench.trace import save_trace
from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.config.engine import EngineConfig
from hpcserve.errors import UsageError

_WARMUP = 256

Say = Callable[[str], None]


def run_offline(
    config: EngineConfig,
    selection: Selection,
    *,
    seed: int,
    repeats: int,
    warmup: int | None,
    frontend: bool,
    hardware: Hardware,
    trace_file: Path | None,
    say: Say,
) -> dict[str, Any]:
    """The cell of a report, with what was run.

    frontend: through hpcserve.LLM; else the core alone, which also gives token times.
    Raises UsageError for workloads that only a server can run.
    """
    from hpcserve.engine.model_folder import with_model_folder

    config = with_model_folder(config)
    checkpoint = CheckpointConfig.load(Path(config.model.model))
    draw = selection.drawer(seed=seed, vocab_size=checkpoint.vocab_size)
    if trace_file is not None:
        save_trace(trace_file, draw(1))
    warm = draw(0)[: _WARMUP if warmup is None else warmup]
    measured = [draw(repeat + 1) for repeat in range(repeats)]
    _check(selection.name, measured[0])
    say(f"starting the engine for {config.model.model}")
    measure = _through_llm if frontend else _core_alone
    recorded = measure(config, [warm, *measured] if warm else measured)
    if warm:
        next(recorded)
    cost = ModelCost.of(checkpoint)
    figures: list[Figures] = []
    for requests, records in zip(measured, recorded, strict=True):
        figures.append(figures_of(requests, records, cost=cost, hardware=hardware))
        say(f"run {len(figures)}: {figures[-1]['output_tok_s']:,.0f} output tok/s")
    load = {**LoadPoint().describe(), "label": "all at once"}
    return {
        "workload": selection.describe(seed=seed, vocab_size=checkpoint.vocab_size),
        "engine": config.to_options(),
        "frontend": frontend,
        "cells": [{"load": load, "runs": figures, "summary": summarize(figures)}],
    }


def _check(name: str, requests: list[BenchRequest]) -> None:
    for request in requests:
        if request.prompt_token_ids is None or request.body:
            raise UsageError(
                f"{name}: requests with text or extra fields need a server; "
                "use `hpcserve bench serving`"
            )
        if request.chat is not None:
            raise UsageError(
                f"{name}: turns that wait for each other need a server; use `hpcserve bench serving`"
            )


def _through_llm(
    config: EngineConfig, runs: list[list[BenchRequest]]
) -> Iterator[list[RequestRecord]]:
    from hpcserve.bench.scripted_core import sampling_of
    from hpcserve.engine.llm import LLM

    with LLM(**config.to_options()) as llm:
        for requests in runs:
            prompts = [request.prompt_token_ids or [] for request in requests]
            start = time.perf_counter()
            outputs = llm.generate(prompts, [sampling_of(request) for request in requests])
            yield [
                RequestRecord(
                    index,
                    scheduled_s=0.0,
                    sent_s=output.arrival_s - start,
                    end_s=output.finished_s - start,
                    prompt_tokens=len(output.prompt_token_ids),
                    output_tokens=output.num_output_tokens,
                    cached_tokens=output.num_cached_tokens,
                )
                for index, output in enumerate(outputs)
            ]


def _core_alone(
    config: EngineConfig, runs: list[list[BenchRequest]]
) -> Iterator[list[RequestRecord]]:
    from hpcserve.bench.scripted_core import ScriptedChannel, run_core_alone
    from hpcserve.engine.core import EngineCore, make_executor

    channel = ScriptedChannel(iter(runs))
    yield from run_core_alone(EngineCore(config, make_executor(config), channel), channel)
