"""`prefix`: groups of questions that share a long beginning, as few-shot prompts do."""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import Workload
from hpcserve.config.option import option
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class PrefixWorkload(Workload):
    """num_groups * questions_per_group requests, in one random order over all groups.

    zipf: 0 gives every group as many questions; above 0, the k-th group is asked in proportion to
    k**-zipf, as popular system prompts are.
    """

    num_groups: int = option(32, "--num-groups", help="how many prefixes")
    questions_per_group: int = option(32, "--questions-per-group", help="questions of a prefix")
    prefix_len: int = option(2048, "--prefix-len", help="tokens that a group shares")
    question_len: int = option(64, "--question-len", help="tokens of a question")
    output_len: int = option(32, "--output-len", help="tokens of an answer")
    zipf: float = option(0.0, "--zipf", help="how unequal groups are; 0: all alike")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zipf < 0:
            raise ConfigError(f"zipf is {self.zipf}; it must not be negative")

    def build(self, source: TokenSource) -> list[BenchRequest]:
        prefixes = [source.tokens(self.prefix_len) for _ in range(self.num_groups)]
        return [
            BenchRequest(
                prompt_token_ids=prefixes[group] + source.tokens(self.question_len),
                max_tokens=self.output_len,
                group=group,
            )
            for group in self._groups(source)
        ]

    def _groups(self, source: TokenSource) -> list[int]:
        """The group of each request, in the order of sending."""
        total = self.num_groups * self.questions_per_group
        if self.zipf:
            weights = [(rank + 1) ** -self.zipf for rank in range(self.num_groups)]
            shares = [weight / sum(weights) for weight in weights]
            drawn: list[int] = source.shape.choice(self.num_groups, total, p=shares).tolist()
            return drawn
        shuffled: list[int] = (source.shape.permutation(total) % self.num_groups).tolist()
        return shuffled


EntryClass = PrefixWorkload
