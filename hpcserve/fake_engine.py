"""A core without a model: it speaks the real messages, so what lies before it is tested for real.

`FakeCore` answers each prompt with what its `answer` function says (by default: the prompt's own
tokens, then EOS), one token a step for every running request. `python -m hpcserve.fake_engine`
is one as a process, to stand in for the real one behind EngineClient.start.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from hpcserve.config.engine import EngineConfig
from hpcserve.engine.client import EngineClient
from hpcserve.engine.core_main import run_order
from hpcserve.ipc.channel import CoreChannel
from hpcserve.ipc.endpoints import create_endpoint
from hpcserve.ipc.messages import (
    AbortRequests,
    ControlReply,
    ControlRequest,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineDead,
    FinishedRequest,
    FrontendMessage,
    Ready,
    RequestFailed,
    SchedulerStats,
    TokenLogprobs,
)
from hpcserve.tokenizer.byte_level import byte_alphabet
from hpcserve.tokenizer.tokenizer import Tokenizer

#: Ids of the byte tokenizer: 0 to 255 are bytes.
IM_START, IM_END, EOS = 256, 257, 258
VOCAB_SIZE = 259

CHAT_TEMPLATE = """\
{%- if tools %}tools {{ tools | tojson }}
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
{%- if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}"""


def write_byte_tokenizer(folder: Path) -> Path:
    """A tokenizer whose ids are the bytes of the text, with ChatML markers. Returns `folder`."""
    vocabulary = byte_alphabet()
    inner = RustTokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    markers = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    inner.add_special_tokens([AddedToken(text, special=True) for text in markers])
    inner.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def echo(request: EngineCoreRequest) -> list[int]:
    """The prompt's own tokens, without the markers of a chat."""
    return [int(token_id) for token_id in request.prompt_token_ids if token_id < IM_START]


def say(text: str) -> Callable[[EngineCoreRequest], list[int]]:
    """Always the same answer."""
    return lambda request: list(text.encode())


@dataclass
class _Running:
    frontend: bytes
    request: EngineCoreRequest
    answer: list[int]
    num_output: int = 0

    def next_token(self) -> int:
        """The answer, then EOS; over and over where EOS may not end it."""
        params = self.request.params
        position = self.num_output
        endless = params.ignore_eos or position < params.min_tokens
        if position >= len(self.answer) and (not endless or not self.answer):
            return IM_END
        return self.answer[position % len(self.answer)]


@dataclass
class FakeCore:
    """One step gives every running request one token.

    step_delay_s: how long a step takes.  max_queued: refuse requests beyond so many.
    die_after_steps: then say EngineDead and stop, or, with die_silently, just stop.
    start_delay_s: how long it takes to become ready.  start_failure: say this instead of Ready.
    """

    answer: Callable[[EngineCoreRequest], list[int]] = echo
    context_length: int = 4096
    step_delay_s: float = 0.0
    max_queued: int | None = None
    die_after_steps: int | None = None
    die_silently: bool = False
    start_delay_s: float = 0.0
    start_failure: EngineDead | None = None
    num_steps: int = 0
    num_flushes: int = 0
    num_output_tokens: int = 0
    num_prompt_tokens: int = 0
    running: dict[tuple[bytes, int], _Running] = field(default_factory=dict)
    #: Every request that came, in order.
    seen: list[EngineCoreRequest] = field(default_factory=list)
    aborted: int = 0
    _stop: bool = False

    @property
    def ready(self) -> Ready:
        return Ready(self.context_length, VOCAB_SIZE, 65536, 16, [IM_END, EOS], "fake", {})

    def run(self, endpoint: str) -> None:
        """Serve until told to shut down."""
        channel = CoreChannel(endpoint)
        try:
            time.sleep(self.start_delay_s)
            if self.start_failure is not None:
                channel.broadcast(self.start_failure)
                return
            channel.broadcast(self.ready)
            while not self._stop:
                for frontend, message in channel.receive(0 if self.running else 50):
                    self._handle(channel, frontend, message)
                if self.running:
                    self._step(channel)
                if self.num_steps == self.die_after_steps:
                    if not self.die_silently:
                        channel.broadcast(EngineDead("core", "told to die", 1))
                    return
        finally:
            channel.close()

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stop = True

    def _handle(self, channel: CoreChannel, frontend: bytes, message: FrontendMessage) -> None:
        if isinstance(message, EngineCoreRequest):
            self._admit(channel, frontend, message)
        elif isinstance(message, AbortRequests):
            for request_id in message.request_ids:
                self.aborted += self.running.pop((frontend, request_id), None) is not None
        else:
            self._control(channel, frontend, message)

    def _control(self, channel: CoreChannel, frontend: bytes, message: ControlRequest) -> None:
        if message.kind == "shutdown":
            self.stop()
        elif message.kind == "flush_cache":
            self.num_flushes += 1
        stats = self._stats() if message.kind == "stats" else None
        channel.send(frontend, ControlReply(message.call_id, stats))

    def _admit(self, channel: CoreChannel, frontend: bytes, request: EngineCoreRequest) -> None:
        self.seen.append(request)
        if self.max_queued is not None and len(self.running) >= self.max_queued:
            text = f"{len(self.running)} requests wait already; try again later"
            channel.send(frontend, RequestFailed(request.request_id, "queue_full", text))
            return
        self.num_prompt_tokens += len(request.prompt_token_ids)
        entry = _Running(frontend, request, self.answer(request))
        self.running[frontend, request.request_id] = entry

    def _step(self, channel: CoreChannel) -> None:
        if self.step_delay_s:
            time.sleep(self.step_delay_s)
        self.num_steps += 1
        messages: dict[bytes, EngineCoreOutputs] = {}
        for key, entry in list(self.running.items()):
            message = messages.setdefault(entry.frontend, _no_outputs())
            if self._advance(entry, message):
                del self.running[key]
        for frontend, message in messages.items():
            if not any(message.logprobs or ()):
                message.logprobs = None
            channel.send(frontend, message)

    def _advance(self, entry: _Running, message: EngineCoreOutputs) -> bool:
        """Add the request's next token to the step's message. True where it ended."""
        request, params = entry.request, entry.request.params
        if entry.num_output == 0:
            _add_prompt_facts(request, message)
        token_id = entry.next_token()
        entry.num_output += 1
        self.num_output_tokens += 1
        message.request_ids.append(request.request_id)
        message.token_ids.append(token_id)
        if message.logprobs is not None:
            wanted = params.logprobs is not None
            message.logprobs.append(_logprobs(token_id, params.logprobs or 0) if wanted else None)
        stops = token_id in params.stop_token_ids or (
            token_id in (IM_END, EOS) and not params.ignore_eos
        )
        stops = stops and entry.num_output > params.min_tokens
        limit = self.context_length - len(request.prompt_token_ids)
        ended = stops or entry.num_output >= min(params.max_tokens or limit, limit)
        if ended:
            reason = "stop" if stops else "length"
            stop_id = token_id if stops else None
            message.finished.append(FinishedRequest(request.request_id, reason, stop_id, 3))
        return ended

    def _stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self.running),
            num_waiting=0,
            num_free_pages=4096,
            num_cached_pages=0,
            num_total_pages=4096,
            num_steps_total=self.num_steps,
            prompt_tokens_total=self.num_prompt_tokens,
            cached_tokens_total=0,
            output_tokens_total=self.num_output_tokens,
            num_retracted_total=0,
            num_evictable_pages=0,
        )


def _logprobs(token_id: int, num_top: int) -> TokenLogprobs:
    ids = [(token_id + step) % VOCAB_SIZE for step in range(num_top)]
    return TokenLogprobs(-0.5, ids, [-0.5 - step for step in range(num_top)])


def _add_prompt_facts(request: EngineCoreRequest, message: EngineCoreOutputs) -> None:
    if message.num_cached_tokens is not None:
        message.num_cached_tokens.append((request.request_id, 3))
    if message.queued_s is not None:
        message.queued_s.append(0.25)
    wanted = request.params.prompt_logprobs
    if wanted is not None and message.prompt_logprobs is not None:
        entries = [_logprobs(int(token_id), wanted) for token_id in request.prompt_token_ids[1:]]
        message.prompt_logprobs.append((request.request_id, entries))


def _no_outputs() -> EngineCoreOutputs:
    """Room for the news of a step."""
    return EngineCoreOutputs([], [], [], [], [], [], [])


@asynccontextmanager
async def fake_engine(
    core: FakeCore, folder: Path, config: EngineConfig | None = None
) -> AsyncIterator[EngineClient]:
    """A client of `core`, which runs in a thread. folder: where the tokenizer's files go."""
    tokenizer = Tokenizer.load(write_byte_tokenizer(folder))
    with create_endpoint() as endpoint:
        thread = threading.Thread(target=core.run, args=(str(endpoint),), daemon=True)
        thread.start()
        client = await EngineClient.connect(endpoint, tokenizer, config, timeout_s=60)
        try:
            yield client
        finally:
            await client.close()
            core.stop()
            thread.join()


def _run(config: EngineConfig, endpoint: str) -> None:
    """The seed chooses the kind of life: 0 a good one, others the ends that tests ask for."""
    lives = {
        0: FakeCore(),
        1: FakeCore(die_after_steps=3),
        2: FakeCore(die_after_steps=3, die_silently=True),
        3: FakeCore(step_delay_s=0.02),
        4: FakeCore(start_delay_s=60.0),
        5: FakeCore(start_failure=EngineDead("core", "no config.json in it", 2)),
    }
    lives[config.scheduler.random_seed].run(endpoint)


if __name__ == "__main__":
    run_order(_run)
