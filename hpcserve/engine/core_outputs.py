"""One message per step and frontend, however many requests got a token."""

from __future__ import annotations

from collections.abc import Iterable

from hpcserve.ipc.messages import EngineCoreOutputs, ModelRunnerOutput
from hpcserve.scheduler.request import Request
from hpcserve.scheduler.scheduler import TokenUpdate


def by_frontend(
    updates: Iterable[TokenUpdate], output: ModelRunnerOutput
) -> dict[bytes, EngineCoreOutputs]:
    """A step's tokens, sorted by the frontend whose requests they belong to."""
    messages: dict[bytes, EngineCoreOutputs] = {}
    for update in updates:
        request = update.request
        message = messages.get(request.frontend)
        if message is None:
            message = messages[request.frontend] = EngineCoreOutputs([], [], [])
        message.request_ids.append(request.request_id)
        message.token_ids.append(update.token_id)
        if len(request.output_token_ids) == 1:
            _add_first_token(message, request)
        if update.finished is not None:
            message.finished.append(update.finished)
        if output.logprobs is not None:
            _add_logprobs(message, update, output)
        if request.prompt_logprobs:
            _add_prompt_logprobs(message, request)
    return messages


def _add_logprobs(
    message: EngineCoreOutputs, update: TokenUpdate, output: ModelRunnerOutput
) -> None:
    """Called for every token of a step that has any, which keeps them aligned."""
    if message.logprobs is None:
        message.logprobs = []
    message.logprobs.append((output.logprobs or {}).get(update.row))


def _add_first_token(message: EngineCoreOutputs, request: Request) -> None:
    """What is known, and told, once per request."""
    if message.num_cached_tokens is None or message.queued_s is None:
        message.num_cached_tokens, message.queued_s = [], []
    message.num_cached_tokens.append((request.request_id, request.num_cached_tokens))
    message.queued_s.append(request.queued_s)


def _add_prompt_logprobs(message: EngineCoreOutputs, request: Request) -> None:
    """Chunks of a prompt bring its log-probabilities in pieces; they leave with its first token."""
    if message.prompt_logprobs is None:
        message.prompt_logprobs = []
    in_order = [request.prompt_logprobs[position] for position in sorted(request.prompt_logprobs)]
    message.prompt_logprobs.append((request.request_id, in_order))
    request.prompt_logprobs.clear()
