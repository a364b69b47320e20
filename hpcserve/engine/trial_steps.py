"""Steps of no real requests: the largest there may be, to measure it, and small ones of every kind,
so that no kernel is compiled for the first time while requests wait."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpcserve.ipc.messages import Int32Array, NewRequest, SchedulerOutput
from hpcserve.sampling_params import SamplingParams

#: Tokens of steps that take other kernels or tiles than their neighbours: linears are tuned for
#: every power of two up to 64, experts by the rows that each has, in steps of more than two.
_SIZES = tuple(2**power for power in range(13))
#: What rows may ask for that other kernels do: the likeliest token; a drawn one, of all or of some
#: tokens; both with what changes or reports logits.
_PARAMS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0),
    SamplingParams(top_p=0.9, top_k=50),
    SamplingParams(frequency_penalty=0.1, logit_bias={0: 1.0}, logprobs=1),
    SamplingParams(temperature=0.0, logit_bias={0: 1.0}),
)


@dataclass(frozen=True)
class StepLimits:
    """What bounds a step.  num_tokens: most new tokens of one."""

    max_slots: int
    num_tokens: int
    context_length: int
    page_size: int
    vocab_size: int


def largest_step(limits: StepLimits) -> tuple[SchedulerOutput, int]:
    """A step with as many tokens and sampling rows as any may have, and the pages that it needs.

    Tokens are spread over the rows, each row a prompt that samples.
    """
    num_rows = min(limits.max_slots, limits.num_tokens)
    lengths = np.full(num_rows, limits.num_tokens // num_rows, dtype=np.int32)
    lengths[: limits.num_tokens % num_rows] += 1
    lengths = np.minimum(lengths, limits.context_length)
    pages_each = -(-lengths // limits.page_size)
    first_pages = np.cumsum(pages_each) - pages_each
    pages = [
        np.arange(count, dtype=np.int32) + np.int32(first)
        for first, count in zip(first_pages, pages_each, strict=True)
    ]
    params = SamplingParams(top_p=0.9, top_k=50)
    nothing = np.zeros(num_rows, dtype=np.int32)
    return _step(nothing, lengths, pages, params, limits.vocab_size), int(pages_each.sum())


def warm_up_steps(limits: StepLimits) -> Iterator[SchedulerOutput]:
    """Steps that fit into the pages of `largest_step`: prompts of several lengths, and decodes
    beside a prompt with every kind of parameters."""
    most = min(limits.num_tokens, limits.context_length)
    greedy = SamplingParams(temperature=0.0)
    for size in (size for size in _SIZES if size <= most):
        pages = [np.arange(-(-size // limits.page_size), dtype=np.int32)]
        none, lengths = np.zeros(1, np.int32), np.full(1, size, np.int32)
        yield _step(none, lengths, pages, greedy, limits.vocab_size)
    if limits.max_slots < 2 or limits.num_tokens < 3 or limits.context_length < 2:
        return
    # A decode of a second token, and a prompt of two; nobody minds that they share a page.
    pages = [np.zeros(2, np.int32)] * 2
    computed, lengths = np.array([1, 0], np.int32), np.array([1, 2], np.int32)
    for params in _PARAMS:
        step = _step(computed, lengths, pages, params, limits.vocab_size, num_decodes=1)
        # As a request grows: its slot's first page becomes page 0, which it is.
        step.new_page_slots = step.new_page_indices = step.new_page_ids = np.zeros(1, np.int32)
        yield step


def _step(
    num_computed: Int32Array,
    num_scheduled: Int32Array,
    pages: list[Int32Array],
    params: SamplingParams,
    vocab_size: int,
    num_decodes: int = 0,
) -> SchedulerOutput:
    """New requests, one a row, each of which samples."""
    num_rows, lengths = len(num_scheduled), num_computed + num_scheduled
    requests = [
        NewRequest(
            slot=row,
            token_ids=np.arange(lengths[row], dtype=np.int32) % vocab_size,
            num_prompt_tokens=int(lengths[row]),
            page_ids=pages[row],
            params=params,
            seed=row,
        )
        for row in range(num_rows)
    ]
    nothing = np.zeros(0, dtype=np.int32)
    return SchedulerOutput(
        step_id=0,
        slots=np.arange(num_rows, dtype=np.int32),
        num_computed=num_computed,
        num_scheduled=num_scheduled,
        samples=np.ones(num_rows, dtype=np.int32),
        num_decodes=num_decodes,
        released_slots=[],
        new_requests=requests,
        new_page_slots=nothing,
        new_page_indices=nothing,
        new_page_ids=nothing,
    )
