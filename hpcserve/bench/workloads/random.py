"""`random`: unrelated prompts, with lengths fixed or uniform."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.lengths import uniform_lengths
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import CountedWorkload
from hpcserve.config.option import option


@dataclass(frozen=True)
class RandomWorkload(CountedWorkload):
    """Lengths are uniform in [range_ratio * len, len]; ratio 1 makes all requests equal."""

    input_len: int = option(1024, "--input-len", help="tokens of a prompt")
    output_len: int = option(128, "--output-len", help="tokens of an answer")
    range_ratio: float = option(
        1.0, "--range-ratio", help="shortest length as a share of the longest, in (0, 1]"
    )

    def build(self, source: TokenSource) -> list[BenchRequest]:
        count = self.num_requests
        inputs = uniform_lengths(source.shape, self.input_len, self.range_ratio, count)
        outputs = uniform_lengths(source.shape, self.output_len, self.range_ratio, count)
        return [
            BenchRequest(prompt_token_ids=source.tokens(num_in), max_tokens=num_out)
            for num_in, num_out in zip(inputs, outputs, strict=True)
        ]


EntryClass = RandomWorkload
