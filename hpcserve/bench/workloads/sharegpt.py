"""`sharegpt`: lengths like those of people's chats, both log-normal; token ids are random."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.lengths import LogNormal
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import CountedWorkload
from hpcserve.config.option import option
from hpcserve.errors import ConfigError

#: variant -> (prompt, answer). `public` states means after the cut, `protocol` medians before it.
VARIANTS = {
    "public": (
        LogNormal(mean=220, sigma=1.2, low=4, high=2048),
        LogNormal(mean=190, sigma=1.0, low=4, high=1024),
    ),
    "protocol": (
        LogNormal(median=130, sigma=1.4, low=4, high=2048),
        LogNormal(median=140, sigma=1.0, low=4, high=1024),
    ),
}


@dataclass(frozen=True)
class ShareGptWorkload(CountedWorkload):
    variant: str = option(
        "public", "--variant", choices=tuple(VARIANTS), help="which parameters of the lengths"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ConfigError(f"variant {self.variant!r}; choose one of {', '.join(VARIANTS)}")

    def build(self, source: TokenSource) -> list[BenchRequest]:
        prompt, answer = VARIANTS[self.variant]
        inputs = prompt.draw(source.shape, self.num_requests)
        outputs = answer.draw(source.shape, self.num_requests)
        return [
            BenchRequest(prompt_token_ids=source.tokens(num_in), max_tokens=num_out)
            for num_in, num_out in zip(inputs, outputs, strict=True)
        ]


EntryClass = ShareGptWorkload
