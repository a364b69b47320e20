"""The KV cache: page size, memory, reuse of prefixes."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.config.option import option
from hpcserve.errors import ConfigError

PAGE_SIZES = (1, 16, 64)


@dataclass(frozen=True)
class CacheConfig:
    page_size: int = option(
        16,
        "--page-size",
        "--block-size",
        choices=PAGE_SIZES,
        help="tokens per page of the KV cache",
    )
    mem_fraction_static: float = option(
        0.88,
        "--mem-fraction-static",
        "--gpu-memory-utilization",
        help="share of the GPU's memory for weights and KV cache",
    )
    max_total_tokens: int | None = option(
        None,
        "--max-total-tokens",
        help="tokens in the KV cache; default: what fits (on a CPU 65,536, and at least one context)",
    )
    enable_radix_cache: bool = option(
        True,
        "--enable-prefix-caching",
        off_flags=("--disable-radix-cache", "--no-enable-prefix-caching"),
        help="reuse the KV cache of a prompt's prefix",
    )

    def __post_init__(self) -> None:
        if self.page_size not in PAGE_SIZES:
            raise ConfigError(
                f"page_size {self.page_size}; choose one of {', '.join(map(str, PAGE_SIZES))}"
            )
        if not 0.0 < self.mem_fraction_static <= 1.0:
            raise ConfigError(f"mem_fraction_static {self.mem_fraction_static} is not in (0, 1]")
        if self.max_total_tokens is not None and self.max_total_tokens < self.page_size:
            raise ConfigError(
                f"max_total_tokens {self.max_total_tokens} is less than one page of {self.page_size}"
            )
