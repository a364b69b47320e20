"""How many pages the KV pool has."""

from __future__ import annotations

import numpy as np
import torch

from hpcserve.config.cache import CacheConfig
from hpcserve.errors import ConfigError
from hpcserve.ipc.messages import NewRequest, SchedulerOutput
from hpcserve.sampling_params import SamplingParams

#: Tokens of a CPU's pool where nothing else is said.
CPU_TOKENS = 65_536


def pages_on_cpu(config: CacheConfig, context_length: int) -> int:
    """max_total_tokens, or 65,536 tokens and at least one context."""
    tokens = config.max_total_tokens or max(CPU_TOKENS, context_length)
    return tokens // config.page_size


def pages_on_gpu(
    config: CacheConfig, *, device: torch.device, page_bytes: int, activation_bytes: int
) -> int:
    """What mem_fraction_static of the GPU's memory leaves beside what is used and activations.

    Weights must be loaded and the profiling step done. max_total_tokens is a ceiling.
    Raises ConfigError that states the numbers where not one page fits.
    """
    free, total = torch.cuda.mem_get_info(device)
    left = int(total * config.mem_fraction_static) - (total - free) - activation_bytes
    num_pages = left // page_bytes
    if config.max_total_tokens is not None:
        num_pages = min(num_pages, config.max_total_tokens // config.page_size)
    if num_pages < 1:
        gib = 1 << 30
        raise ConfigError(
            f"no memory is left for the KV cache: of {total / gib:.1f} GiB, {(total - free) / gib:.1f} "
            f"are used, a step needs {activation_bytes / gib:.1f} more, and mem_fraction_static is "
            f"{config.mem_fraction_static}; raise it, lower --chunked-prefill-size, or use more GPUs"
        )
    return num_pages


def largest_step(
    *, max_slots: int, num_tokens: int, context_length: int, page_size: int, vocab_size: int
) -> tuple[SchedulerOutput, int]:
    """A step with as many tokens and sampling rows as any may have, and the pages that it needs.

    Tokens are spread over the rows, each row a prompt that samples.
    """
    num_rows = min(max_slots, num_tokens)
    lengths = np.full(num_rows, num_tokens // num_rows, dtype=np.int32)
    lengths[: num_tokens % num_rows] += 1
    lengths = np.minimum(lengths, context_length)
    pages_each = -(-lengths // page_size)
    first_pages = np.cumsum(pages_each) - pages_each
    requests = [
        NewRequest(
            slot=row,
            token_ids=np.arange(lengths[row], dtype=np.int32) % vocab_size,
            num_prompt_tokens=int(lengths[row]),
            page_ids=np.arange(pages_each[row], dtype=np.int32) + np.int32(first_pages[row]),
            params=SamplingParams(top_p=0.9, top_k=50),
            seed=row,
        )
        for row in range(num_rows)
    ]
    nothing = np.zeros(0, dtype=np.int32)
    step = SchedulerOutput(
        step_id=0,
        slots=np.arange(num_rows, dtype=np.int32),
        num_computed=np.zeros(num_rows, dtype=np.int32),
        num_scheduled=lengths,
        samples=np.ones(num_rows, dtype=np.int32),
        num_decodes=0,
        released_slots=[],
        new_requests=requests,
        new_page_slots=nothing,
        new_page_indices=nothing,
        new_page_ids=nothing,
    )
    return step, int(pages_each.sum())
