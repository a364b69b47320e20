"""A request as the scheduler sees it."""

from __future__ import annotations

import time
from enum import Enum, auto
from typing import Any

import numpy as np

from hpcserve.ipc.messages import EngineCoreRequest, Int32Array, TokenLogprobs


class RequestStatus(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Request:
    """State of one request.

    Tokens: the prompt, then `output_token_ids` (known), then `num_pending` (sampled by steps
    whose results have not been read yet); `num_tokens` counts all three and ends at
    `max_num_tokens`. `num_computed` tokens have their KV in `pages`, or will have once the steps
    issued so far have run.

    pages[:num_cache_pages] belong to the prefix cache, which `node` locks; the rest to us.
    """

    __slots__ = (
        "arrival_s",
        "frontend",
        "max_num_tokens",
        "node",
        "num_cache_pages",
        "num_cached_tokens",
        "num_computed",
        "num_passed_over",
        "num_pending",
        "num_prompt_tokens",
        "num_retractions",
        "num_tokens",
        "output_token_ids",
        "pages",
        "params",
        "priority",
        "prompt_logprobs",
        "prompt_token_ids",
        "queued_s",
        "received_s",
        "request_id",
        "seed",
        "slot",
        "status",
        "stop_ids",
    )

    def __init__(
        self,
        message: EngineCoreRequest,
        *,
        frontend: bytes,
        seed: int,
        max_output_tokens: int,
        eos_token_ids: frozenset[int],
    ) -> None:
        params = message.params
        self.request_id = message.request_id
        self.frontend = frontend
        self.prompt_token_ids: Int32Array = message.prompt_token_ids
        self.params = params
        self.priority = message.priority
        self.arrival_s = message.arrival_s
        # By this process's own clock: the frontend may be on another node.
        self.received_s = time.monotonic()
        self.queued_s = 0.0
        self.seed = seed
        self.num_prompt_tokens = len(message.prompt_token_ids)
        self.num_tokens = self.num_prompt_tokens
        self.max_num_tokens = self.num_prompt_tokens + max_output_tokens
        own = frozenset(params.stop_token_ids)
        self.stop_ids: frozenset[int] = own if params.ignore_eos else own | eos_token_ids
        self.status = RequestStatus.WAITING
        self.output_token_ids: list[int] = []
        self.num_pending = 0
        self.num_computed = 0
        self.slot = -1
        self.pages: list[int] = []
        self.num_cache_pages = 0
        self.node: Any = None
        self.num_cached_tokens = 0
        self.num_retractions = 0
        self.num_passed_over = 0
        # position -> log-probability of the token behind it; only where they were asked for.
        self.prompt_logprobs: dict[int, TokenLogprobs] = {}

    def start(self, slot: int) -> None:
        """It is admitted, perhaps not for the first time."""
        self.status = RequestStatus.RUNNING
        self.slot = slot
        if not self.num_retractions:
            self.queued_s = time.monotonic() - self.received_s

    @property
    def key(self) -> tuple[bytes, int]:
        """Unique among all requests: ids are given out by each frontend for itself."""
        return (self.frontend, self.request_id)

    @property
    def num_known(self) -> int:
        """Tokens whose ids the scheduler knows."""
        return self.num_tokens - self.num_pending

    @property
    def num_left_to_sample(self) -> int:
        """Output tokens not yet asked of any step."""
        return self.max_num_tokens - self.num_tokens

    def known_token_ids(self) -> Int32Array:
        """int32[num_known]."""
        if not self.output_token_ids:
            return self.prompt_token_ids
        outputs = np.array(self.output_token_ids, np.int32)
        return np.concatenate((self.prompt_token_ids, outputs))
