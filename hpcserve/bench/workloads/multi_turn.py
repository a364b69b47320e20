"""`multi-turn`: chats whose every turn repeats all turns before it and adds to them.

The answers in the history are drawn in advance, not taken from the server: so every engine gets
the very same prompts, and the cache can reuse earlier prompts, but not the answers it generated.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpcserve.bench.request import BenchRequest
from hpcserve.bench.token_source import TokenSource
from hpcserve.bench.workloads.base import Workload
from hpcserve.config.option import option
from hpcserve.errors import ConfigError


@dataclass(frozen=True)
class MultiTurnWorkload(Workload):
    """num_chats * num_turns requests; turn k waits for turn k-1 and a thinking time after it.

    Thinking times are exponential. `--concurrency` counts chats under way.
    """

    num_chats: int = option(256, "--num-chats", help="how many chats")
    num_turns: int = option(8, "--num-turns", help="turns of each chat")
    input_len: int = option(200, "--input-len", help="tokens that a turn adds")
    output_len: int = option(150, "--output-len", help="tokens of an answer")
    think_time_s: float = option(2.0, "--think-time", help="mean seconds between turns")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.think_time_s < 0:
            raise ConfigError(f"the think time {self.think_time_s} is negative")

    def build(self, source: TokenSource) -> list[BenchRequest]:
        return [request for chat in range(self.num_chats) for request in self._chat(chat, source)]

    def _chat(self, chat: int, source: TokenSource) -> list[BenchRequest]:
        requests = []
        history: list[int] = []
        for turn in range(self.num_turns):
            history = history + source.tokens(self.input_len)
            think_s = float(source.shape.exponential(self.think_time_s)) if turn else 0.0
            requests.append(
                BenchRequest(
                    prompt_token_ids=history,
                    max_tokens=self.output_len,
                    group=f"turn {turn + 1}",
                    chat=chat,
                    think_s=think_s,
                )
            )
            history = history + source.tokens(self.output_len)
        return requests


EntryClass = MultiTurnWorkload
