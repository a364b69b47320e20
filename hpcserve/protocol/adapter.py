"""Bodies to what the engine takes, and its outputs to bodies: shared by server and batch."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from hpcserve.errors import InvalidParameterError
from hpcserve.outputs import CompletionOutput, RequestOutput, TokenLogprob
from hpcserve.protocol.blame import PROMPT, blames
from hpcserve.protocol.body import sampling_params
from hpcserve.protocol.generate import GenerateBody
from hpcserve.protocol.grammars import after_thinking, grammar_field
from hpcserve.protocol.logprobs import chat_logprobs, completion_logprobs, native_logprobs
from hpcserve.protocol.markers import THINK, ReasoningSplitter, ToolCallSplitter
from hpcserve.protocol.openai import ChatBody, CompletionBody
from hpcserve.protocol.responses import (
    ChatChoice,
    ChatMessage,
    ChatResponse,
    CompletionChoice,
    CompletionResponse,
    make_usage,
)
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer

DEFAULT_COMPLETION_TOKENS = 16
#: A model that says nothing of how it is sampled.
NO_DEFAULTS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class EngineInput:
    """One prompt, ready for EngineClient.

    name: what the client calls it, if it does.  text: the prompt as text, where it is known.
    field, grammar_field: of the body, that the prompt and the grammar came from.
    """

    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    name: str | None = None
    text: str | None = None
    field: str = PROMPT
    grammar_field: str | None = None


@dataclass(frozen=True)
class ResponseHead:
    """What every body and chunk of one response repeats."""

    id: str
    model: str
    created: int

    @classmethod
    def new(cls, prefix: str, model: str) -> ResponseHead:
        return cls(f"{prefix}-{uuid.uuid4().hex}", model, int(time.time()))


# ---------------------------------------------------------------- chat


def chat_input(
    body: ChatBody, tokenizer: Tokenizer, defaults: Mapping[str, Any] = NO_DEFAULTS
) -> EngineInput:
    """defaults: sampling fields of the model's own.  Raises InvalidParameterError."""
    body.check()
    variables = template_variables(body.chat_template_kwargs)
    for name in ("reasoning_effort", "documents"):
        if (value := getattr(body, name)) is not None:
            variables.setdefault(name, value)
    text = tokenizer.chat_template.render(
        body.messages,
        tools=body.offered_tools,
        add_generation_prompt=body.add_generation_prompt is not False,
        **variables,
    )
    forced = body.forced_call
    params = sampling_params(
        body,
        defaults,
        max_tokens=body.max_tokens
        if body.max_completion_tokens is None
        else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    if forced is not None:
        if params.grammar is not None:
            raise InvalidParameterError("tool_choice", "it forces a call: no other format can hold")
        params = msgspec.structs.replace(params, grammar=forced)
    if params.grammar is not None:
        inside = text.rstrip().endswith(THINK)
        if inside or body.separate_reasoning:
            found = after_thinking(params.grammar, inside=inside)
            params = msgspec.structs.replace(params, grammar=found)
    with blames("messages"):
        ids = tokenizer.encode(text, add_special_tokens=bool(body.add_special_tokens))
    asked = grammar_field(body, body.response_format) if params.grammar is not None else None
    return EngineInput(ids, params, body.priority or 0, body.rid, text, "messages", asked)


def template_variables(given: dict[str, Any] | None) -> dict[str, Any]:
    """`chat_template_kwargs`, without what has a field of its own. Raises InvalidParameterError."""
    for name in ("messages", "tools", "add_generation_prompt"):
        if name in (given or {}):
            raise InvalidParameterError("chat_template_kwargs", f"{name} has a field of its own")
    return dict(given or {})


def reasoning_splitter(body: ChatBody, prompt: EngineInput) -> ReasoningSplitter | None:
    """For bodies that ask to have the thinking apart."""
    if not body.separate_reasoning:
        return None
    return ReasoningSplitter(inside=(prompt.text or "").rstrip().endswith(THINK))


def chat_response(
    body: ChatBody,
    prompt: EngineInput,
    output: RequestOutput,
    tokenizer: Tokenizer,
    head: ResponseHead,
) -> ChatResponse:
    choices = []
    for answer in output.outputs:
        message, called = _chat_message(body, prompt, answer.text)
        reason = "tool_calls" if called and answer.finish_reason == "stop" else answer.finish_reason
        logprobs = None if answer.logprobs is None else chat_logprobs(answer.logprobs, tokenizer)
        choices.append(ChatChoice(answer.index, message, reason, logprobs, answer.stop_reason))
    usage = make_usage(
        len(output.prompt_token_ids), output.num_output_tokens, output.num_cached_tokens
    )
    return ChatResponse(head.id, head.created, head.model, choices, usage)


def _chat_message(body: ChatBody, prompt: EngineInput, text: str) -> tuple[ChatMessage, bool]:
    thinking: str | None = None
    splitter = reasoning_splitter(body, prompt)
    if splitter is not None:
        first, last = splitter.add(text), splitter.flush()
        thinking, text = first[0] + last[0] or None, first[1] + last[1]
    if not body.offered_tools:
        return ChatMessage("assistant", text, thinking), False
    tools = ToolCallSplitter()
    kept, calls = tools.add(text)
    kept += tools.flush()
    if not calls:
        return ChatMessage("assistant", kept, thinking), False
    return ChatMessage("assistant", kept.strip() or None, thinking, calls), True


# ---------------------------------------------------------------- completions


def completion_inputs(
    body: CompletionBody, tokenizer: Tokenizer, defaults: Mapping[str, Any] = NO_DEFAULTS
) -> list[EngineInput]:
    """One per prompt.  defaults: sampling fields of the model's own.

    Raises InvalidParameterError.
    """
    body.check()
    asked = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    params = sampling_params(
        body,
        defaults,
        # With echo, 0 asks for the prompt alone; the engine always makes one token.
        max_tokens=1 if asks_only_prompt(body) else asked,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    prompts = body.prompts()
    special = body.add_special_tokens is not False
    encoded = _encoded(prompts, tokenizer, add_special_tokens=special)
    asked_by = grammar_field(body, body.response_format) if params.grammar is not None else None
    return [
        EngineInput(
            next(encoded) if isinstance(prompt, str) else prompt,
            params,
            body.priority or 0,
            _name(body.rid, index),
            prompt if isinstance(prompt, str) else None,
            grammar_field=asked_by,
        )
        for index, prompt in enumerate(prompts)
    ]


def _encoded(
    prompts: list[str | list[int]],
    tokenizer: Tokenizer,
    *,
    add_special_tokens: bool = True,
) -> Iterator[list[int]]:
    """Token ids of those prompts that are texts, in order."""
    texts = [text for text in prompts if isinstance(text, str)]
    return iter(tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens))


def echoed_text(body: CompletionBody, prompt: EngineInput, tokenizer: Tokenizer) -> str:
    """What stands before the answer."""
    if not body.echo:
        return ""
    if prompt.text is not None:
        return prompt.text
    return tokenizer.decode(prompt.prompt_token_ids, skip_special_tokens=False)


def completion_response(
    body: CompletionBody,
    prompts: list[EngineInput],
    outputs: list[RequestOutput],
    tokenizer: Tokenizer,
    head: ResponseHead,
) -> CompletionResponse:
    choices = []
    for number, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        for answer in output.outputs:
            choice = completion_choice(body, prompt, answer, output.prompt_logprobs, tokenizer)
            choice.index += number * prompt.params.n
            choices.append(choice)
    usage = make_usage(
        sum(len(output.prompt_token_ids) for output in outputs),
        0 if asks_only_prompt(body) else sum(output.num_output_tokens for output in outputs),
        sum(output.num_cached_tokens for output in outputs),
    )
    return CompletionResponse(head.id, head.created, head.model, choices, usage)


def completion_choice(
    body: CompletionBody,
    prompt: EngineInput,
    answer: CompletionOutput,
    prompt_logprobs: list[TokenLogprob] | None,
    tokenizer: Tokenizer,
) -> CompletionChoice:
    text, ids = answer.text, list(answer.token_ids)
    entries: list[TokenLogprob | None] = list(answer.logprobs or ())
    if asks_only_prompt(body):
        text, ids, entries = "", [], []
    if body.echo:
        text = echoed_text(body, prompt, tokenizer) + text
        ids = [*prompt.prompt_token_ids, *ids]
        entries = [None, *(prompt_logprobs or ()), *entries]
    found = None if body.logprobs is None else completion_logprobs(entries, ids, tokenizer)
    reason = "length" if asks_only_prompt(body) else answer.finish_reason
    return CompletionChoice(answer.index, text, reason, found, answer.stop_reason)


def asks_only_prompt(body: CompletionBody) -> bool:
    """With echo and no tokens: the client wants the prompt, most often its log-probabilities."""
    return bool(body.echo) and body.max_tokens == 0


def _name(rid: str | None, index: int) -> str | None:
    return rid if rid is None or index == 0 else f"{rid}-{index}"


# ---------------------------------------------------------------- native


def generate_inputs(body: GenerateBody, tokenizer: Tokenizer) -> list[EngineInput]:
    """One per prompt. Raises InvalidParameterError."""
    prompts = body.prompts()
    params = body.params_of_each(len(prompts))
    given = body.rid if isinstance(body.rid, list) else None
    names = body.of_each("rid", len(prompts)) if given or body.is_single else [None] * len(prompts)
    with blames(body.prompt_field):
        encoded = _encoded(prompts, tokenizer)
    return [
        EngineInput(
            next(encoded) if isinstance(prompt, str) else prompt,
            its_params,
            body.priority or 0,
            name,
            prompt if isinstance(prompt, str) else None,
            body.prompt_field,
            "sampling_params",
        )
        for prompt, its_params, name in zip(prompts, params, names, strict=True)
    ]


def generate_response(
    body: GenerateBody, number: int, output: RequestOutput, tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """One entry per answer of prompt `number`."""
    found = []
    for answer in output.outputs:
        if body.asks_only_prompt(number):
            answer = _without_tokens(answer)
        meta = generate_meta(output, answer)
        if answer.logprobs is not None:
            texts = tokenizer if body.return_text_in_logprobs else None
            chosen, top = native_logprobs(answer.logprobs, texts)
            meta |= {"output_token_logprobs": chosen, "output_top_logprobs": top}
            meta |= _input_logprobs(body, number, output, texts)
        found.append({"text": answer.text, "output_ids": answer.token_ids, "meta_info": meta})
    return found


def _without_tokens(answer: CompletionOutput) -> CompletionOutput:
    """The answer to a client that wants none."""
    ended = None if answer.finish_reason is None else "length"
    logprobs: list[TokenLogprob] | None = None if answer.logprobs is None else []
    return CompletionOutput(answer.index, "", [], ended, None, logprobs)


def generate_meta(output: RequestOutput, answer: CompletionOutput) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "id": output.request_id if answer.index == 0 else f"{output.request_id}-{answer.index}",
        "finish_reason": _native_finish(answer),
        "prompt_tokens": len(output.prompt_token_ids),
        "completion_tokens": len(answer.token_ids),
        "cached_tokens": output.num_cached_tokens,
    }
    if answer.finish_reason is not None:
        now_s = output.finished_s or time.perf_counter()
        meta["e2e_latency"] = now_s - output.arrival_s
    return meta


def _native_finish(answer: CompletionOutput) -> dict[str, Any] | None:
    if answer.finish_reason == "stop":
        return {"type": "stop", "matched": answer.stop_reason}
    if answer.finish_reason == "length":
        return {"type": "length", "length": len(answer.token_ids)}
    if answer.finish_reason is None:
        return None
    return {"type": answer.finish_reason}


def _input_logprobs(
    body: GenerateBody, number: int, output: RequestOutput, texts: Tokenizer | None
) -> dict[str, Any]:
    if output.prompt_logprobs is None:
        return {}
    chosen, top = native_logprobs(output.prompt_logprobs, texts)
    first = int(output.prompt_token_ids[0])
    text = None if texts is None else texts.token_text(first)
    given = body.logprob_start_len
    start = max(0, (given[number] if isinstance(given, list) else given) or 0)
    return {
        "input_token_logprobs": [(None, first, text), *chosen][start:],
        "input_top_logprobs": [None, *top][start:],
    }
