"""One message per frontend, its lists aligned."""

from __future__ import annotations

import numpy as np

from hpcserve.engine.core_outputs import by_frontend
from hpcserve.ipc.messages import EngineCoreRequest, ModelRunnerOutput, TokenLogprobs
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.request import Request
from hpcserve.scheduler.scheduler import TokenUpdate


def update(row: int, frontend: bytes = b"", *, num_before: int = 0) -> TokenUpdate:
    message = EngineCoreRequest(row, np.array([1, 2], np.int32), SamplingParams())
    request = Request(
        message, frontend=frontend, seed=0, max_output_tokens=9, eos_token_ids=frozenset()
    )
    request.num_cached_tokens = 10 + row
    request.output_token_ids = [3] * num_before + [40 + row]
    return TokenUpdate(request, row, 40 + row, None)


def result(**more) -> ModelRunnerOutput:
    return ModelRunnerOutput(1, np.array([40, 41, 42, 43], np.int32), **more)


def test_each_frontend_gets_its_own() -> None:
    messages = by_frontend([update(0, b"a"), update(1, b"b"), update(2, b"a")], result())
    assert messages[b"a"].request_ids == [0, 2]
    assert messages[b"a"].token_ids == [40, 42]
    assert messages[b"b"].token_ids == [41]
    assert messages[b"b"].logprobs is None


def test_logprobs_stand_beside_their_tokens() -> None:
    entry = TokenLogprobs(-1.0, [], [])
    updates = [update(row) for row in range(4)]
    assert by_frontend(updates, result(logprobs={2: entry}))[b""].logprobs == [
        None,
        None,
        entry,
        None,
    ]


def test_cached_tokens_are_told_with_the_first_token_alone() -> None:
    message = by_frontend([update(0), update(1, num_before=1)], result())[b""]
    assert message.num_cached_tokens == [(0, 10)]
    assert message.queued_s == [0.0]


def test_prompt_logprobs_leave_once_and_in_order() -> None:
    one, (first, second) = update(0), (TokenLogprobs(-1.0, [], []), TokenLogprobs(-2.0, [], []))
    one.request.prompt_logprobs = {1: second, 0: first}
    assert by_frontend([one], result())[b""].prompt_logprobs == [(0, [first, second])]
    assert by_frontend([one], result())[b""].prompt_logprobs is None
