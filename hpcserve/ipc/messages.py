"""ALL messages that cross a process boundary.

Tagged msgspec structs: decoding is an explicit union, never pickle. Arrays are numpy int32 and
travel as raw bytes (see codec.py). Request ids are integers that the frontend gives
out; the ids users see stay in the frontend.

frontend -> core    EngineCoreRequest, AbortRequests, ControlRequest
core -> frontend    Ready, EngineCoreOutputs, RequestFailed, ControlReply, SchedulerStats, EngineDead
core -> workers     StoreAddress, SchedulerOutput (one a step), CompileGrammar, StartProfile,
                    StopProfile, WorkerBeat (an answer), StopWorker
worker -> core      WorkerHello, StoreAddress, WorkerReady, ModelRunnerOutput, GrammarCompiled,
                    ProfileReply, WorkerBeat, WorkerFailed
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from hpcserve.grammar import Grammar
from hpcserve.sampling_params import SamplingParams

Int32Array: TypeAlias = npt.NDArray[np.int32]


class _Message(msgspec.Struct, tag=True, array_like=True):
    """Base: sent as an array, the class name first."""


# ---------------------------------------------------------------- frontend -> core


class EngineCoreRequest(_Message):
    """One prompt to be continued once (`n` answers are `n` requests).

    prompt_token_ids: int32[num_prompt_tokens].  priority: higher runs first under `priority`.
    arrival_s: seconds since the epoch.
    """

    request_id: int
    prompt_token_ids: Int32Array
    params: SamplingParams
    priority: int = 0
    arrival_s: float = 0.0


class AbortRequests(_Message):
    """Stop these; unknown ids are ignored, since they may just have finished."""

    request_ids: list[int]


class ControlRequest(_Message):
    """kind: flush_cache (drop every page nobody uses), stats, shutdown, start_profile (argument:
    the folder for the traces), stop_profile (argument: the moment that names them; the reply's
    results: their paths, one a rank), discard_profile (stop it without traces, if one is taken)."""

    call_id: int
    kind: str
    argument: str = ""


# ---------------------------------------------------------------- core -> frontend


class Ready(_Message):
    """The engine answers from now on.

    timings_s: seconds of each phase of the start-up.  max_total_tokens: size of the KV cache.
    """

    context_length: int
    vocab_size: int
    max_total_tokens: int
    page_size: int
    eos_token_ids: list[int]
    device: str
    timings_s: dict[str, float]


class TokenLogprobs(_Message):
    """One generated token's log-probability, and the likeliest tokens at its position."""

    logprob: float
    top_token_ids: list[int]
    top_logprobs: list[float]


class FinishedRequest(_Message):
    """finish_reason: stop, length or abort.  stop_token_id: the token that ended it, if one did.

    num_cached_tokens: tokens of the prompt whose KV was reused.
    """

    request_id: int
    finish_reason: str
    stop_token_id: int | None
    num_cached_tokens: int


class EngineCoreOutputs(_Message):
    """What one step gave to one frontend: at most one token a request.

    request_ids[i] got token_ids[i]; logprobs, where any request asked, is aligned with them.
    prompt_logprobs: (request id, one entry per prompt token but the first), once per request.
    num_cached_tokens: (request id, tokens of the prompt whose KV was reused), with a request's
    first token: a stop string ends a request in the frontend, where no FinishedRequest is awaited.
    queued_s: aligned with num_cached_tokens: seconds from the core's receipt of the request to its
    admission to a step.
    """

    request_ids: list[int]
    token_ids: list[int]
    finished: list[FinishedRequest]
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_logprobs: list[tuple[int, list[TokenLogprobs]]] | None = None
    num_cached_tokens: list[tuple[int, int]] | None = None
    queued_s: list[float] | None = None


class RequestFailed(_Message):
    """The only other end of a request. `code`: queue_full, context_length_exceeded, ..."""

    request_id: int
    code: str
    message: str


class SchedulerStats(_Message):
    """Gauges of one replica; *_total are counters since the start.

    num_evictable_pages: those of the cached pages that no request uses at the moment.
    """

    num_running: int
    num_waiting: int
    num_free_pages: int
    num_cached_pages: int
    num_total_pages: int
    num_steps_total: int
    prompt_tokens_total: int
    cached_tokens_total: int
    output_tokens_total: int
    num_retracted_total: int
    num_evictable_pages: int = 0


class ControlReply(_Message):
    call_id: int
    stats: SchedulerStats | None = None
    error: str | None = None
    results: list[str] = []


class EngineDead(_Message):
    """The engine is gone: which role, why, and the exit code that fits."""

    role: str
    reason: str
    exit_code: int = 1


# ---------------------------------------------------------------- core <-> workers


class NewRequest(_Message):
    """A request enters a slot: what the worker must know about it once.

    token_ids: int32[n], all tokens known so far (after a retraction, outputs as well); they are
    written into the slot's row of the token buffer, and outputs follow at positions n, n+1, ...
    page_ids: int32[m], the pages of its cached prefix, in order.
    seed: the request's own, or one drawn from the engine's.
    """

    slot: int
    token_ids: Int32Array
    num_prompt_tokens: int
    page_ids: Int32Array
    params: SamplingParams
    seed: int


class SchedulerOutput(_Message):
    """One step: what runs, and what changed since the step before.

    Apply in this order: released_slots, new_requests, new pages, then run the rows.
    Row i runs the tokens at positions [num_computed[i], num_computed[i] + num_scheduled[i]) of
    slot slots[i]. The ids of these tokens are in the slot's row of the worker's token buffer:
    given by NewRequest, or written there by an earlier step that sampled them. So a step may be
    issued before the tokens of the one before it are known.
    samples[i] is 1 where the row's last token is the newest of its request: then one token is
    sampled and written at position num_computed[i] + num_scheduled[i] of the token buffer.
    Rows stand decodes first (num_scheduled == 1 and samples == 1), then prefills.

    new_page_slots/indices/ids: page table of slot[k] at index[k] becomes id[k].
    replica_tokens: tokens of each replica in this step, where replicas share experts.
    all_decode: then no replica has a row that is no decode.
    known_*: tokens sampled by earlier steps, with their slots and positions; sent only where a
    rank that runs the row is not the one that sampled (pipeline stages). Written before the rows
    run.
    All arrays int32.
    """

    step_id: int
    slots: Int32Array
    num_computed: Int32Array
    num_scheduled: Int32Array
    samples: Int32Array
    num_decodes: int
    released_slots: list[int]
    new_requests: list[NewRequest]
    new_page_slots: Int32Array
    new_page_indices: Int32Array
    new_page_ids: Int32Array
    known_slots: Int32Array | None = None
    known_positions: Int32Array | None = None
    known_token_ids: Int32Array | None = None
    replica_tokens: list[int] | None = None
    all_decode: bool = False


class LockstepOutput(_Message):
    """The step of each replica, by dp rank, where replicas share experts."""

    step_id: int
    steps: list[SchedulerOutput]


class ModelRunnerOutput(_Message):
    """What one step sampled, row by row as in its SchedulerOutput.

    sampled_token_ids: int32[num_rows], -1 where the row sampled nothing.
    logprobs[i]: for rows that sample and whose request asked.
    prompt_logprobs[i]: for rows of prefill whose request asked: one entry for each token of the
    prompt that this step's positions predict (position p predicts token p + 1).
    """

    step_id: int
    sampled_token_ids: Int32Array
    logprobs: dict[int, TokenLogprobs] | None = None
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None = None
    dp_rank: int = 0


class CompileGrammar(_Message):
    """Make it ready for requests that will bring it."""

    grammar: Grammar


class GrammarCompiled(_Message):
    """error: why it cannot be compiled, None where it is ready."""

    grammar: Grammar
    error: str | None = None


class StartProfile(_Message):
    """Record a torch profiler trace from the next step on.  folder: on the rank's node."""

    folder: str


class StopProfile(_Message):
    """End the recording after the steps before.  moment: names the trace; "" for no trace."""

    moment: str


class ProfileReply(_Message):
    """Every rank's answer to each of these.  path: of a trace that is written."""

    rank: int
    path: str = ""
    error: str | None = None


class WorkerInfo(_Message):
    """What the workers found when they were set up: the core sizes its page pool by it."""

    num_pages: int
    vocab_size: int
    context_length: int
    eos_token_ids: list[int]
    device: str
    timings_s: dict[str, float]


class WorkerHello(_Message):
    """A rank's first word.  node: its host's name."""

    rank: int
    node: str


class StoreAddress(_Message):
    """Where the ranks of a replica meet: its first rank says it, the core passes it on."""

    address: str
    port: int


class WorkerReady(_Message):
    """A rank is set up."""

    rank: int
    info: WorkerInfo


class WorkerBeat(_Message):
    """A sign of life, twice a second; the core answers each.

    rank: -1 in the core's answer.  last_step: number of the newest step that the rank took up.
    doing: where its program is in that step, or in getting ready, "" between steps.  waits: there
    it waits for others.
    """

    rank: int
    last_step: int = 0
    doing: str = ""
    waits: bool = False


class WorkerFailed(_Message):
    """A rank's last words.  reason: one line.  exit_code: that of the error.

    is_own_fault: False for an error of the network, which may be another rank's end.
    """

    rank: int
    node: str
    reason: str
    exit_code: int = 1
    is_own_fault: bool = True


class StopWorker(_Message):
    """End in order."""


FrontendMessage: TypeAlias = EngineCoreRequest | AbortRequests | ControlRequest
CoreMessage: TypeAlias = Ready | EngineCoreOutputs | RequestFailed | ControlReply | EngineDead
ToWorker: TypeAlias = (
    StoreAddress
    | SchedulerOutput
    | LockstepOutput
    | CompileGrammar
    | StartProfile
    | StopProfile
    | WorkerBeat
    | StopWorker
)
FromWorker: TypeAlias = (
    WorkerHello
    | StoreAddress
    | WorkerReady
    | ModelRunnerOutput
    | GrammarCompiled
    | ProfileReply
    | WorkerBeat
    | WorkerFailed
)
