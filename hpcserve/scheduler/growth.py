"""How much memory running requests will still ask for.

Reserving max_tokens for everyone would leave most of the KV pool idle, reserving nothing would
retract all the time. So a share of it is reserved: it falls while all goes well and jumps up when
a request had to be retracted (the scheme of SGLang's `new_token_ratio`).
"""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.scheduler.request import Request

_START = 0.4
_FLOOR = 0.05
_DECAY = 0.998
#: Nobody is believed to need more than this many more tokens.
_MOST_TOKENS = 4096


class GrowthEstimate:
    def __init__(self) -> None:
        self.ratio = _START

    def on_step(self) -> None:
        self.ratio = max(_FLOOR, self.ratio * _DECAY)

    def on_retraction(self) -> None:
        self.ratio = min(1.0, max(self.ratio * 1.5, _START))

    def num_tokens(self, running: Iterable[Request]) -> int:
        """Tokens that these requests are expected to add in the end."""
        total = sum(min(max(request.num_left_to_sample, 0), _MOST_TOKENS) for request in running)
        return int(total * self.ratio)
