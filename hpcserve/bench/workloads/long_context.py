"""`long-context`: very long prompts, alone or arriving among streams that decode."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import Workload
from hpcserve.config.option import option


@dataclass(frozen=True)
class LongContextWorkload(Workload):
    """num_requests prompts of input_len tokens.

    With `--background`, short streams start at time 0 and decode on, and the long prompts arrive
    from `arrive_after_s` on, a second apart: the group "background" then shows in its largest
    inter-token latency how long a long prompt stalls the others.
    """

    num_requests: int = option(4, "--num-requests", "--num-prompts", help="how many long prompts")
    input_len: int = option(32768, "--input-len", help="tokens of a long prompt")
    output_len: int = option(128, "--output-len", help="tokens of an answer")
    background: bool = option(False, "--background", help="let them arrive among short streams")
    background_streams: int = option(64, "--background-streams", help="how many short streams")
    background_len: int = option(1024, "--background-len", help="tokens that each of them decodes")
    arrive_after_s: float = option(3.0, "--arrive-after", help="seconds until the first long one")

    @property
    def has_arrivals(self) -> bool:  # type: ignore[override]
        return self.background

    def build(self, source: TokenSource) -> list[BenchRequest]:
        long = [
            BenchRequest(
                prompt_token_ids=source.tokens(self.input_len),
                max_tokens=self.output_len,
                group="long",
                arrival_s=self.arrive_after_s + index if self.background else 0.0,
            )
            for index in range(self.num_requests)
        ]
        if not self.background:
            return long
        return [self._short(source) for _ in range(self.background_streams)] + long

    def _short(self, source: TokenSource) -> BenchRequest:
        return BenchRequest(
            prompt_token_ids=source.tokens(128), max_tokens=self.background_len, group="background"
        )


EntryClass = LongContextWorkload
