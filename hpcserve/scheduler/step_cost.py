"""How long steps take, learned while they run: so many milliseconds for the decodes, so many more
for each token of a prompt that joins them."""

from __future__ import annotations

#: Weight of the newest step in the running means.
_NEWEST = 0.1
#: A step this many times longer than expected was held up by something else; it teaches nothing.
_OUTLIER = 5.0


class StepCost:
    """Running means of a step's two parts, in seconds; 0 while unknown."""

    def __init__(self) -> None:
        self.decode_s = 0.0
        self.per_prompt_token_s = 0.0

    def observe(self, duration_s: float, *, num_decodes: int, num_prompt_tokens: int) -> None:
        """Learn from one step that had the device to itself for `duration_s`."""
        expected = self.decode_s + self.per_prompt_token_s * num_prompt_tokens
        known = self.decode_s > 0.0 and (self.per_prompt_token_s > 0.0 or not num_prompt_tokens)
        if known and duration_s > _OUTLIER * expected:
            return
        if num_prompt_tokens == 0:
            self.decode_s = _mean(self.decode_s, duration_s)
            return
        base = self.decode_s if num_decodes else 0.0
        each = max(duration_s - base, 0.0) / num_prompt_tokens
        self.per_prompt_token_s = _mean(self.per_prompt_token_s, each)

    def num_prompt_tokens_within(self, target_s: float) -> int | None:
        """Tokens of prompts that may join the decodes so that the step ends within `target_s`.

        None while nothing is known; 0 or less where the decodes alone take as long.
        """
        if self.per_prompt_token_s <= 0.0:
            return None
        return int((target_s - self.decode_s) / self.per_prompt_token_s)


def _mean(so_far: float, newest: float) -> float:
    return newest if so_far == 0.0 else so_far + _NEWEST * (newest - so_far)
