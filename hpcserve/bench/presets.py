"""The four public workloads by name, with every number that defines them.

    bs1       8 requests, 128 tokens in, 512 out, one stream, streaming.
    c256      1,024 requests, closed loop of 256 streams, streaming; prompts log-normal with mean 512
              after the cut to 4-4,096, sigma 0.7; 256 tokens out.
    sharegpt  3,000 requests, all at once, not streaming; prompts log-normal with mean 220 after the
              cut to 4-2,048, sigma 1.2; answers log-normal with mean 190 after the cut to 4-1,024,
              sigma 1.0.
    prefix    32 groups of a 2,048-token prefix, 32 questions of 64 tokens each, in one random order;
              32 tokens out; closed loop of 256 streams, streaming.

All are greedy, ignore EOS and draw token ids uniformly. A flag on the command line changes the
number it names, and the report then says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """concurrency: streams of the closed loop; None sends everything at once."""

    workload: str
    concurrency: int | None
    stream: bool
    values: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    "bs1": Preset(
        "random",
        concurrency=1,
        stream=True,
        values={"num_requests": 8, "input_len": 128, "output_len": 512, "range_ratio": 1.0},
    ),
    "c256": Preset(
        "lognormal",
        concurrency=256,
        stream=True,
        values={
            "num_requests": 1024,
            "input_mean": 512,
            "input_sigma": 0.7,
            "input_max": 4096,
            "output_len": 256,
        },
    ),
    "sharegpt": Preset(
        "sharegpt",
        concurrency=None,
        stream=False,
        values={"num_requests": 3000, "variant": "public"},
    ),
    "prefix": Preset(
        "prefix",
        concurrency=256,
        stream=True,
        values={
            "num_groups": 32,
            "questions_per_group": 32,
            "prefix_len": 2048,
            "question_len": 64,
            "output_len": 32,
        },
    ),
}


def find_preset(name: str) -> Preset:
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
