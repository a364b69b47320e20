"""Requests for the log-probabilities of their prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hpcserve.engine.core_outputs import by_frontend
from hpcserve.ipc.messages import ModelRunnerOutput, TokenLogprobs

MakeBench = Callable[..., Any]


def test_prompt_logprobs_compute_every_position(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.add(0, list(range(16)), 1)
    bench.run()
    bench.add(1, list(range(16)), 1, prompt_logprobs=0)
    bench.run()
    assert bench.finished[1][1] == 0


def test_prompt_logprobs_make_no_step_of_decodes_eager(make_bench: MakeBench) -> None:
    """Once the prompt is through, such a request decodes like any other: its step is captured."""
    bench = make_bench()
    bench.add(0, list(range(5)), 4, prompt_logprobs=0)
    prompt, *decodes = [bench.scheduler.schedule() for _ in range(4)]
    assert (len(prompt.slots), prompt.num_decodes) == (1, 0)
    assert [step.num_decodes for step in decodes] == [1, 1, 1]


def test_prompt_logprobs_leave_once_though_a_retracted_prompt_is_computed_again(
    make_bench: MakeBench,
) -> None:
    bench = make_bench()
    bench.add(0, list(range(5)), 9, prompt_logprobs=0)
    scheduler, [request] = bench.scheduler, bench.scheduler.requests
    sent = []
    for token in (11, 12):
        step = scheduler.schedule()
        count = int(step.num_scheduled[0]) - 1
        entries = [TokenLogprobs(-float(position), [], []) for position in range(count)]
        output = ModelRunnerOutput(step.step_id, np.array([token], np.int32), None, {0: entries})
        [message] = by_frontend(scheduler.update(output), output).values()
        sent.append(message.prompt_logprobs)
        scheduler._retract(request)
    assert [len(entries) for _, entries in sent[0]] == [4]
    assert sent[1] is None
