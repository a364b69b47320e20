"""Offline use: `LLM("folder").generate(["..."])`, no event loop in sight."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.model_folder import with_model_folder
from hpcserve.engine.supervisor import CORE_MODULE
from hpcserve.errors import UsageError
from hpcserve.ipc.messages import SchedulerStats
from hpcserve.outputs import RequestOutput
from hpcserve.sampling_params import SamplingParams
from hpcserve.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
Prompt = str | Sequence[int]
Conversation = list[dict[str, Any]]


class LLM:
    """An engine of one's own. Close it, or use it as a context manager.

    model: folder or cached hub name; None is the bundled tiny-chat.
    options: any engine option by any of its names, such as `max_model_len=4096`.
    """

    def __init__(self, model: str | None = None, *, core_module: str = CORE_MODULE, **options: Any):
        if model is not None:
            options["model"] = str(model)
        self.config = with_model_folder(EngineConfig.from_options(options))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()
        self._closed = False
        with ExitStack() as stack:
            stack.callback(self._stop_loop)
            self._client = self._run(EngineClient.open(self.config, module=core_module))
            stack.pop_all()

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's."""
        return self._client.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue each prompt; results stand in the order of the prompts.

        prompts: a text or list of token ids, or many of them.
        sampling_params: for all, or one for each; default: `default_sampling_params`.
        progress: draw a bar on stderr.
        Raises RequestError for the first prompt that cannot run, before any of them starts.
        """
        many = _as_list(prompts)
        ids = self._encode(many)
        params = self._params_list(sampling_params, len(ids))
        outputs = self._run(self._complete(ids, params, progress))
        for prompt, output in zip(many, outputs, strict=True):
            output.prompt = prompt if isinstance(prompt, str) else None
        return outputs

    def chat(
        self,
        messages: Conversation | list[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, or each of several; an empty list is none."""
        is_one = bool(messages) and not isinstance(messages[0], list)
        many: list[Any] = [messages] if is_one else messages
        variables = chat_template_kwargs or {}
        ids: list[Sequence[int]] = [
            self.tokenizer.encode_chat(one, tools=tools, **variables) for one in many
        ]
        params = self._params_list(sampling_params, len(ids))
        return self._run(self._complete(ids, params, progress))

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What is used where none are given: the model's own, read from its
        generation_config.json; greedy where it does not say; until EOS or full context."""
        return SamplingParams(**{"temperature": 0.0, **self._client.sampling_defaults})

    def stats(self) -> SchedulerStats:
        """Gauges and counters of the engine."""
        return self._run(self._client.stats())

    def flush_cache(self) -> None:
        """Drop every page of the KV cache that no request uses."""
        self._run(self._client.flush_cache())

    def close(self) -> None:
        """Stop the engine; calling it again does nothing."""
        if not self._closed:
            self._run(self._client.close())
            self._stop_loop()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._closed:
            coroutine.close()
            raise UsageError("this LLM is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # after Ctrl-C in the caller: its requests must not run on

    def _stop_loop(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _encode(self, prompts: list[Prompt]) -> list[Sequence[int]]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self.tokenizer.encode_batch(texts))
        return [next(encoded) if isinstance(prompt, str) else prompt for prompt in prompts]

    def _params_list(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None:
            given = self.default_sampling_params
        if isinstance(given, SamplingParams):
            return [given] * count
        if len(given) != count:
            raise UsageError(
                f"{len(given)} sampling params for {count} prompts; give one, or one each"
            )
        return list(given)

    async def _complete(
        self, prompts: list[Sequence[int]], params: list[SamplingParams], progress: bool
    ) -> list[RequestOutput]:
        pairs = list(zip(prompts, params, strict=True))
        for ids, one in pairs:
            self._client.check(ids, one)
        streams = [self._client.submit(ids, one, streams=False) for ids, one in pairs]
        try:
            with _Progress(len(streams), shown=progress) as bar:
                outputs = []
                for stream in streams:
                    outputs.append(await stream.result())
                    bar.advance(outputs[-1].num_output_tokens)
                return outputs
        finally:
            for stream in streams:
                stream.abort()


class _Progress:
    """A bar of finished prompts on stderr, or nothing."""

    def __init__(self, total: int, *, shown: bool) -> None:
        self._num_tokens = 0
        self._bar: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._task = self._bar.add_task("prompts", total=total)

    def advance(self, num_tokens: int) -> None:
        self._num_tokens += num_tokens
        if self._bar is not None:
            self._bar.update(
                self._task, advance=1, description=f"prompts ({self._num_tokens} tokens)"
            )

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
