"""`lognormal`: prompts of log-normal length, answers of one fixed length."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.lengths import LogNormal
from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import CountedWorkload
from hpcserve.config.option import option


@dataclass(frozen=True)
class LogNormalWorkload(CountedWorkload):
    input_mean: int = option(512, "--input-mean", help="mean tokens of a prompt, after the cut")
    input_sigma: float = option(0.7, "--input-sigma", help="spread of the logarithm of a length")
    input_max: int = option(4096, "--input-max", help="cut of a prompt's tokens")
    output_len: int = option(256, "--output-len", help="tokens of an answer")

    def build(self, source: TokenSource) -> list[BenchRequest]:
        inputs = LogNormal(
            mean=self.input_mean, sigma=self.input_sigma, low=4, high=self.input_max
        ).draw(source.shape, self.num_requests)
        return [
            BenchRequest(prompt_token_ids=source.tokens(num_in), max_tokens=self.output_len)
            for num_in in inputs
        ]


EntryClass = LogNormalWorkload
