"""How many pages the KV pool has."""

from __future__ import annotations

import torch

from hpcserve.config.cache import CacheConfig
from hpcserve.errors import ConfigError

#: Tokens of a CPU's pool where nothing else is said.
CPU_TOKENS = 65_536


def pages_on_cpu(config: CacheConfig, context_length: int) -> int:
    """max_total_tokens, or 65,536 tokens and at least one context."""
    tokens = config.max_total_tokens or max(CPU_TOKENS, context_length)
    return tokens // config.page_size


def pages_on_gpu(
    config: CacheConfig, *, device: torch.device, page_bytes: int, step_bytes: int
) -> int:
    """What mem_fraction_static of the GPU's memory leaves beside what is used and what steps take.

    step_bytes: of activations and of per-slot state. Weights must have their places and the
    profiling step be done. max_total_tokens is a ceiling.
    Raises ConfigError that states the numbers where not one page fits.
    """
    free, total = torch.cuda.mem_get_info(device)
    left = int(total * config.mem_fraction_static) - (total - free) - step_bytes
    num_pages = left // page_bytes
    if config.max_total_tokens is not None:
        num_pages = min(num_pages, config.max_total_tokens // config.page_size)
    if num_pages < 1:
        gib = 1 << 30
        raise ConfigError(
            f"no memory is left for the KV cache: of {total / gib:.1f} GiB, {(total - free) / gib:.1f} "
            f"are used, steps need {step_bytes / gib:.1f} more, and mem_fraction_static is "
            f"{config.mem_fraction_static}; raise it, lower --chunked-prefill-size, or use more GPUs"
        )
    return num_pages
