"""The real engine behind a run: bodies through `protocol.adapter`, requests through EngineClient."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcserve.batch.engine import (
    EngineLimits,
    PreparedRequest,
    PreparerRecipe,
    RowAnswer,
    RowPreparer,
)
from hpcserve.batch.fingerprint import model_content, template_content
from hpcserve.batch.row import CHAT_URL, COMPLETION_URL
from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.model_folder import load_tokenizer, model_name, with_model_folder
from hpcserve.engine.supervisor import CORE_MODULE
from hpcserve.errors import InvalidParameterError
from hpcserve.ipc.messages import Int32Array
from hpcserve.outputs import RequestOutput
from hpcserve.protocol.adapter import (
    EngineInput,
    ResponseHead,
    chat_input,
    chat_response,
    completion_inputs,
    completion_response,
)
from hpcserve.protocol.blame import blames
from hpcserve.protocol.body import SamplingBody, parse_body
from hpcserve.protocol.openai import ChatBody, CompletionBody
from hpcserve.tokenizer.tokenizer import Tokenizer

_NO_SAMPLING = {"model", "stream", "stream_options", "rid", "messages", "prompt"}
#: What an answer is taken to need where its row does not limit it: the window's measure only.
_USUAL_OUTPUT_TOKENS = 256
#: So many of a prompt's first tokens say beside which rows it goes to the engine.
_PREFIX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class _Prepared:
    """ids: the prompts' tokens, as they are sent. `inputs` repeat prompts only where the answer
    says something of them."""

    body: ChatBody | CompletionBody
    inputs: list[EngineInput]
    ids: list[Int32Array]


class ClientPreparer:
    """Bodies to token ids; what only the engine can refuse is refused when it is given the row."""

    def __init__(self, tokenizer: Tokenizer, defaults: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._defaults = defaults

    def prepare(self, url: str, body: dict[str, Any]) -> PreparedRequest:
        """Parse, render and tokenise."""
        parsed: ChatBody | CompletionBody
        if url == CHAT_URL:
            parsed = parse_body(ChatBody, body)
            inputs = [chat_input(parsed, self._tokenizer, self._defaults)]
        else:
            parsed = parse_body(CompletionBody, body)
            inputs = completion_inputs(parsed, self._tokenizer, self._defaults)
        ids = [_as_array(one.prompt_token_ids) for one in inputs]
        num_tokens = sum(map(_num_tokens, inputs))
        prefix = ids[0][:_PREFIX_TOKENS].tobytes() if ids else b""
        if not (getattr(parsed, "echo", False) or getattr(parsed, "separate_reasoning", False)):
            inputs = [replace(one, prompt_token_ids=[], name=None, text=None) for one in inputs]
        return PreparedRequest(num_tokens, _Prepared(parsed, inputs, ids), prefix)


@dataclass(frozen=True)
class ClientRecipe:
    """options: of an engine whose model is a folder here.  defaults: as ClientPreparer's."""

    options: dict[str, Any]
    defaults: dict[str, Any]

    def make(self) -> ClientPreparer:
        tokenizer = load_tokenizer(EngineConfig.from_options(self.options))
        return ClientPreparer(tokenizer, self.defaults)


class ClientEngine:
    """A RowEngine on an EngineClient that is ready."""

    def __init__(self, client: EngineClient, model_names: frozenset[str], model_name: str) -> None:
        self._client = client
        self._tokenizer = client.tokenizer
        self._model_name = model_name
        self.model_names = model_names
        self.preparer: RowPreparer = ClientPreparer(client.tokenizer, client.sampling_defaults)
        self.recipe: PreparerRecipe | None = ClientRecipe(
            client.config.to_options(), dict(client.sampling_defaults)
        )
        # Drawing each answer's id from the system would let go of the interpreter every time.
        self._run_id = uuid.uuid4().hex[:24]
        self._numbers = itertools.count()
        self._created = int(time.time())
        config = client.config
        self.limits = EngineLimits(
            max_running_requests=config.scheduler.max_running_requests * config.parallel.dp_size,
            max_total_tokens=client.ready.max_total_tokens,
        )

    async def answer(self, request: PreparedRequest) -> RowAnswer:
        prepared: _Prepared = request.payload
        pairs = zip(prepared.ids, prepared.inputs, strict=True)
        if len(prepared.ids) == 1:
            outputs = [await self._complete(*next(pairs))]
        else:
            outputs = await _together([self._complete(*pair) for pair in pairs])
        return RowAnswer(
            body=self._body(prepared, outputs),
            num_prompt_tokens=sum(len(output.prompt_token_ids) for output in outputs),
            num_output_tokens=sum(output.num_output_tokens for output in outputs),
            num_cached_tokens=sum(output.num_cached_tokens for output in outputs),
        )

    async def num_steps(self) -> int:
        return (await self._client.stats()).num_steps_total

    async def _complete(self, ids: Int32Array, one: EngineInput) -> RequestOutput:
        # A row's `rid` is left out: two rows may have the same.
        with blames(one.field, one.grammar_field):
            return await self._client.complete(ids, one.params, priority=one.priority)

    def _body(self, prepared: _Prepared, outputs: list[RequestOutput]) -> Any:
        body, inputs = prepared.body, prepared.inputs
        if isinstance(body, ChatBody):
            head = self._head("chatcmpl")
            return chat_response(body, inputs[0], outputs[0], self._tokenizer, head)
        head = self._head("cmpl")
        return completion_response(body, inputs, outputs, self._tokenizer, head)

    def _head(self, prefix: str) -> ResponseHead:
        number = next(self._numbers)
        return ResponseHead(f"{prefix}-{self._run_id}{number:08x}", self._model_name, self._created)


class ClientBackend:
    """Starts engines of one configuration. module: what runs as the core's process."""

    fields: dict[str, frozenset[str]] = {  # noqa: RUF012 - never changed
        CHAT_URL: frozenset(ChatBody.model_fields),
        COMPLETION_URL: frozenset(CompletionBody.model_fields),
    }
    sampling_fields = (fields[CHAT_URL] | frozenset(SamplingBody.model_fields)) - _NO_SAMPLING

    def __init__(self, config: EngineConfig, *, module: str = CORE_MODULE) -> None:
        self._asked = config.model.model
        self._config = config
        self._module = module

    @property
    def num_gpus(self) -> int:
        """GPUs that an engine has; 0 on a CPU."""
        on_cpu = self._config.backend.device == "cpu"
        parallel = self._config.parallel
        return 0 if on_cpu else parallel.tp_size * parallel.pp_size * parallel.dp_size

    def content(self) -> dict[str, dict[str, Any]]:
        config = self._located()
        return {"model": model_content(config), "template": template_content(config)}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[ClientEngine]:
        config = self._located()
        folder = Path(config.model.model)
        client = await EngineClient.open(config, module=self._module)
        async with client:
            name = model_name(folder)
            names = frozenset({self._asked, str(folder), folder.name, name})
            yield ClientEngine(client, names, name)

    def _located(self) -> EngineConfig:
        """With the model's folder. Raises ModelNotFoundError."""
        self._config = with_model_folder(self._config)
        return self._config


async def _together(answers: list[Coroutine[Any, Any, RequestOutput]]) -> list[RequestOutput]:
    """All of them; where one fails, the others are aborted: their row has failed."""
    tasks = [asyncio.ensure_future(one) for one in answers]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _as_array(ids: list[int]) -> Int32Array:
    try:
        return np.asarray(ids, dtype=np.int32)
    except (OverflowError, ValueError, TypeError) as error:
        raise InvalidParameterError("prompt", f"no list of token ids: {error}") from error


def _num_tokens(one: EngineInput) -> int:
    """What the row may take of the KV cache."""
    output = min(one.params.max_tokens or _USUAL_OUTPUT_TOKENS, _USUAL_OUTPUT_TOKENS)
    return len(one.prompt_token_ids) + one.params.n * output
