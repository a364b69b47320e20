"""How many tokens of prompts join the decodes of a step."""

from __future__ import annotations

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.ipc.messages import SchedulerOutput
from hpcserve.scheduler.step_cost import StepCost

#: Tokens of prompts that join decodes under a target of latency before their cost is known.
_FIRST_MIXED_TOKENS = 256


class PromptBudget:
    """At most a chunk; fewer where decodes would take longer than `--target-itl`."""

    def __init__(self, config: SchedulerConfig, page_size: int) -> None:
        self._chunk = config.chunked_prefill_size
        self._target_itl_ms = config.target_itl
        self._page_size = page_size
        self._cost = StepCost()

    def num_tokens(self, num_decodes: int) -> int:
        """Of the next step; however many decode, a prompt gets on by a page."""
        budget = self._chunk - num_decodes
        if self._target_itl_ms is not None and num_decodes:
            within = self._cost.num_prompt_tokens_within(self._target_itl_ms / 1000)
            # Until the cost is known: a little, to learn it from.
            budget = min(budget, _FIRST_MIXED_TOKENS if within is None else within)
        return max(budget, self._page_size)

    def observe(self, step: SchedulerOutput, duration_s: float) -> None:
        """Learn what a step cost that had the device to itself for `duration_s`."""
        self._cost.observe(
            duration_s,
            num_decodes=step.num_decodes,
            num_prompt_tokens=int(step.num_scheduled[step.num_decodes :].sum()),
        )
