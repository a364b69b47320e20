"""One request of a benchmark, as a workload draws it and a trace file keeps it."""

from __future__ import annotations

from typing import Any

import msgspec

from hpcserve.errors import InputError


class BenchRequest(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A prompt, how many tokens to ask for, and when.

    prompt_token_ids or prompt: exactly one of them.
    arrival_s: seconds after the start of the run; only open loops read it.
    group: a name under which figures are also given apart, such as "turn 2".
    chat: requests of one chat run one after the other, each `think_s` after the one before ended.
    ignore_eos: ask for exactly max_tokens.  body: more fields of the HTTP request's JSON body.
    """

    max_tokens: int
    prompt_token_ids: list[int] | None = None
    prompt: str | None = None
    arrival_s: float = 0.0
    group: str | int | None = None
    chat: int | None = None
    think_s: float = 0.0
    ignore_eos: bool = True
    body: dict[str, Any] = {}

    def check(self, where: str) -> None:
        """Raise InputError, which begins with `where`, for a request that cannot be sent."""
        if (self.prompt_token_ids is None) == (self.prompt is None):
            raise InputError(f"{where}: give either prompt_token_ids or prompt")
        if not (self.prompt_token_ids or self.prompt):
            raise InputError(f"{where}: the prompt is empty")
        if self.max_tokens < 1:
            raise InputError(f"{where}: max_tokens is {self.max_tokens}; it must be at least 1")
        if self.arrival_s < 0 or self.think_s < 0:
            raise InputError(f"{where}: arrival_s and think_s must not be negative")


def chains_of(requests: list[BenchRequest]) -> list[list[int]]:
    """Indices of the requests, grouped into what must run one after the other.

    Most chains hold one request; a chat's turns make one chain, at the place of its first turn.
    """
    chains: list[list[int]] = []
    chats: dict[int, list[int]] = {}
    for index, request in enumerate(requests):
        if request.chat is None:
            chains.append([index])
        elif request.chat in chats:
            chats[request.chat].append(index)
        else:
            chats[request.chat] = [index]
            chains.append(chats[request.chat])
    return chains
