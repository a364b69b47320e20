"""Which tokens run next.

`schedule` issues a step without waiting for the one before it: a decode row may run a token that
the step before is still sampling (it is `pending`; the worker finds its id on the device).
`update` takes the steps' results in the order in which they were issued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.errors import ContextLengthError, EngineError
from hpcserve.ipc.messages import (
    EngineCoreRequest,
    FinishedRequest,
    ModelRunnerOutput,
    SchedulerOutput,
    SchedulerStats,
)
from hpcserve.kvcache.base import PrefixCache
from hpcserve.scheduler.counters import Counters
from hpcserve.scheduler.growth import GrowthEstimate
from hpcserve.scheduler.memory import RequestMemory
from hpcserve.scheduler.policy import first_to_retract
from hpcserve.scheduler.prompt_budget import PromptBudget
from hpcserve.scheduler.request import Request, RequestStatus
from hpcserve.scheduler.seeds import SeedSource
from hpcserve.scheduler.slots import SlotPool
from hpcserve.scheduler.stage_news import StageNews
from hpcserve.scheduler.step_builder import StepBuilder, StepRow
from hpcserve.scheduler.waiting import WaitingQueue


class TokenUpdate(msgspec.Struct):
    """One request got a token (row `row` of the step), and perhaps ended."""

    request: Request
    row: int
    token_id: int
    finished: FinishedRequest | None


class Scheduler:
    """Continuous batching over one KV pool.

    context_length: most tokens of a request, prompt and output; at most the pool's size.
    num_micro_batches: stages of a pipeline, each of which shall have a step of its own. Then a
    request is in one step at a time, and steps tell what earlier ones sampled: the first stage
    reads tokens that the last one made.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: PrefixCache[Any],
        num_pages: int,
        *,
        context_length: int,
        eos_token_ids: Iterable[int] = (),
        num_micro_batches: int = 1,
    ) -> None:
        self._config = config
        self._num_micro_batches = num_micro_batches
        self._news = StageNews()
        self._memory = RequestMemory(cache, num_pages)
        self._page_size = cache.page_size
        self.context_length = min(context_length, num_pages * cache.page_size)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._growth = GrowthEstimate()
        self._budget = PromptBudget(config, cache.page_size)
        self._seeds = SeedSource(config.random_seed)
        self._requests: dict[tuple[bytes, int], Request] = {}
        self._waiting = WaitingQueue(config.schedule_policy, config.max_queued_requests)
        # In order of admission; a dict for removal in constant time.
        self._running: dict[tuple[bytes, int], Request] = {}
        self._in_flight: deque[tuple[SchedulerOutput, list[StepRow]]] = deque()
        self._slots = SlotPool(config.max_running_requests)
        self._counters = Counters()

    # ------------------------------------------------------------ requests in and out

    def add(self, message: EngineCoreRequest, frontend: bytes = b"") -> Request:
        """Queue a request.

        Raises QueueFullError, or ContextLengthError where not one token of output would fit.
        """
        self._waiting.check_room()
        num_prompt = len(message.prompt_token_ids)
        room = self.context_length - num_prompt
        wanted = message.params.max_tokens
        if room < 1 or num_prompt < 1:
            raise ContextLengthError(num_prompt, wanted, self.context_length)
        request = Request(
            message,
            frontend=frontend,
            seed=self._seeds.seed_for(message.params),
            max_output_tokens=room if wanted is None else min(wanted, room),
            eos_token_ids=self._eos_token_ids,
        )
        self._requests[request.key] = request
        self._waiting.append(request)
        return request

    def abort(self, request_id: int, frontend: bytes = b"") -> bool:
        """Stop a request; False where it is unknown, or over already."""
        request = self._requests.get((frontend, request_id))
        if request is None:
            return False
        self._finish(request)
        return True

    def abort_all(self, frontend: bytes) -> None:
        """Stop every request of a frontend that is gone."""
        for request in [r for r in self._requests.values() if r.frontend == frontend]:
            self._finish(request)

    @property
    def has_requests(self) -> bool:
        return bool(self._requests)

    @property
    def requests(self) -> list[Request]:
        """All that have not ended, in order of arrival."""
        return list(self._requests.values())

    # ------------------------------------------------------------ a step out

    def schedule(self) -> SchedulerOutput | None:
        """The next step, or None where nothing can run before a result is read."""
        step = StepBuilder()
        self._add_decodes(step)
        budget = self._budget.num_tokens(len(step))
        budget -= self._add_prefills(step, budget)
        if self._waiting:
            self._admit(step, budget)
        if not len(step):
            return None
        self._growth.on_step()
        self._counters.steps += 1
        output, rows = step.build(self._counters.steps, self._slots.released())
        if self._num_micro_batches > 1:
            self._news.tell(output)
        self._in_flight.append((output, rows))
        return output

    def _running_best_first(self) -> list[Request]:
        """Who is to be retracted last comes first: once it has a row, it cannot give way."""
        running = list(self._running.values())
        if self._config.schedule_policy == "priority":
            running.sort(key=lambda request: -request.priority)
        return running

    def _decodes_of_a_step(self) -> list[Request]:
        """The running requests that may decode now; of a pipeline's, a stage's share."""
        running = self._running_best_first()
        if self._num_micro_batches == 1:
            return running
        decoding = [r for r in running if r.num_tokens - r.num_computed == 1 and self._may_run(r)]
        share = -(-len(decoding) // self._num_micro_batches)
        return [request for request in decoding if not request.num_pending][:share]

    def _add_decodes(self, step: StepBuilder) -> None:
        page_size = self._page_size
        for request in self._decodes_of_a_step():
            start = request.num_computed
            # The same as _add_row for one token, without what only prompts need: this loop runs
            # for every request in every step.
            if request.num_tokens - start != 1 or not self._may_run(request):
                continue
            if start == len(request.pages) * page_size and not self._grow(step, request, start + 1):
                continue
            request.num_computed = start + 1
            request.num_tokens += 1
            request.num_pending += 1
            step.add_row(request, start, 1, samples=True)
            if start < request.num_prompt_tokens:
                self._memory.publish(request)

    def _add_prefills(self, step: StepBuilder, budget: int) -> int:
        """Add chunks of prompts that are under way; returns the tokens they take."""
        used = 0
        for request in self._running_best_first():
            if request.num_tokens - request.num_computed <= 1 or not self._may_run(request):
                continue
            if not self._fits(request, budget - used):
                break
            used += self._add_row(step, request, budget - used)
        return used

    def _may_run(self, request: Request) -> bool:
        """False for one that was retracted on the way, or only awaits its last results."""
        running = request.status is RequestStatus.RUNNING
        return running and request.num_tokens < request.max_num_tokens

    def _fits(self, request: Request, budget: int) -> bool:
        """Whether a row of at least one token can be made: all that is left, or a page."""
        return budget >= min(self._page_size, request.num_tokens - request.num_computed)

    def _add_row(self, step: StepBuilder, request: Request, budget: int) -> int:
        """Give a request pages for its next tokens and add its row; returns its tokens (0: none)."""
        start = request.num_computed
        count = self._chunk(request, budget)
        if not self._grow(step, request, start + count):
            return 0
        samples = start + count == request.num_tokens
        request.num_computed = start + count
        if samples:
            request.num_tokens += 1
            request.num_pending += 1
        step.add_row(request, start, count, samples=samples)
        self._memory.publish(request)
        return count

    def _chunk(self, request: Request, budget: int) -> int:
        """Tokens of the next row. Chunks that are not the last end on a page boundary, so that
        all they computed can be shared at once."""
        left = request.num_tokens - request.num_computed
        if left <= budget:
            return left
        end = request.num_computed + budget
        return end - end % self._page_size - request.num_computed

    def _grow(self, step: StepBuilder, request: Request, num_tokens: int) -> bool:
        """Make the request's pages hold `num_tokens`, at others' cost if need be.

        False where the request itself had to give way.
        """
        needed = self._memory.num_pages_for(num_tokens) - len(request.pages)
        if needed <= 0:
            return True
        while (pages := self._memory.allocator.allocate(needed)) is None:
            in_step = step.request_keys()
            candidates = [r for r in self._running.values() if r.key not in in_step]
            victim = first_to_retract(self._config.schedule_policy, candidates)
            self._retract(victim)
            if victim is request:
                return False
        step.add_pages(request.slot, len(request.pages), pages)
        request.pages += pages
        return True

    # ------------------------------------------------------------ admission

    def _admit(self, step: StepBuilder, budget: int) -> None:
        cache, allocator = self._memory.cache, self._memory.allocator
        reserved = self._reserved_pages()
        admitted: set[tuple[bytes, int]] = set()
        for request in self._waiting.best_first(self._memory.num_cached):
            if not self._slots:
                break
            if request.num_pending:
                break  # retracted; the token it waits for is still being sampled
            node, pages = self._memory.match(request)
            left = request.num_tokens - len(pages) * self._page_size
            cache.lock(node)
            needed = self._memory.num_pages_for(left) + reserved
            if needed > allocator.num_available or budget < min(self._page_size, left):
                cache.unlock(node)
                break
            self._start(step, request, node, pages)
            admitted.add(request.key)
            budget -= self._add_row(step, request, budget)
            reserved += self._memory.num_missing_pages(request)
        if admitted:
            self._waiting.leave(admitted)

    def _start(self, step: StepBuilder, request: Request, node: Any, pages: list[int]) -> None:
        request.start(self._slots.take())
        self._memory.enter(request, node, pages)
        if not request.num_retractions:  # finding one's own tokens again is no reuse
            request.num_cached_tokens = request.num_computed
            self._counters.prompt_tokens += request.num_prompt_tokens
            self._counters.cached_tokens += request.num_computed
        self._running[request.key] = request
        step.add_new_request(request)

    def _reserved_pages(self) -> int:
        """Pages that running requests will still need: the rest of their prompts, and growth."""
        running = self._running.values()
        missing = sum(self._memory.num_missing_pages(request) for request in running)
        return missing + self._memory.num_pages_for(self._growth.num_tokens(running))

    def _release(self, request: Request) -> None:
        self._memory.release(request)
        self._slots.give_back(request.slot)
        request.slot = -1
        del self._running[request.key]

    def _retract(self, request: Request) -> None:
        """Back to the head of the queue; it goes on later from what is still cached."""
        self._release(request)
        request.status = RequestStatus.WAITING
        request.num_retractions += 1
        self._counters.retracted += 1
        self._growth.on_retraction()
        self._waiting.put_back(request)

    def _finish(self, request: Request) -> None:
        if request.status is RequestStatus.RUNNING:
            self._release(request)
        else:
            self._waiting.remove(request)
        request.status = RequestStatus.FINISHED
        del self._requests[request.key]

    # ------------------------------------------------------------ a result in

    def update(
        self, output: ModelRunnerOutput, duration_s: float | None = None
    ) -> list[TokenUpdate]:
        """Take in the result of the oldest step in flight.

        duration_s: how long it had the device to itself, where that is known.
        """
        issued, rows = self._in_flight.popleft()
        if duration_s is not None:
            self._budget.observe(issued, duration_s)
        tokens = output.sampled_token_ids.tolist()
        updates: list[TokenUpdate] = []
        if output.prompt_logprobs:
            for row, entries in output.prompt_logprobs.items():
                request, start, _ = rows[row]
                # By position, since a retracted prompt is computed again; with the first output
                # they are complete and leave.
                if not request.output_token_ids:
                    request.prompt_logprobs.update(enumerate(entries, start))
        for row, (request, _, samples) in enumerate(rows):
            if not samples:
                continue
            request.num_pending -= 1
            if request.status is RequestStatus.FINISHED:
                continue  # it ended or was aborted while this step was under way
            token_id = tokens[row]
            request.output_token_ids.append(token_id)
            self._counters.output_tokens += 1
            if self._num_micro_batches > 1:
                self._news.add(request, token_id)
            updates.append(TokenUpdate(request, row, token_id, self._ended(request, token_id)))
        return updates

    def _ended(self, request: Request, token_id: int) -> FinishedRequest | None:
        num_outputs = len(request.output_token_ids)
        stopped = token_id in request.stop_ids and num_outputs >= request.params.min_tokens
        if not stopped and request.num_known < request.max_num_tokens:
            return None
        self._finish(request)
        return FinishedRequest(
            request_id=request.request_id,
            finish_reason="stop" if stopped else "length",
            stop_token_id=token_id if stopped else None,
            num_cached_tokens=request.num_cached_tokens,
        )

    # ------------------------------------------------------------ looking in

    @property
    def num_pages(self) -> int:
        return self._memory.allocator.num_pages

    @property
    def page_size(self) -> int:
        return self._page_size

    def flush_cache(self) -> int:
        """Drop every cached page that no request uses; returns how many."""
        pages = self._memory.cache.clear()
        self._memory.allocator.free(pages)
        return len(pages)

    def check_idle(self) -> None:
        """With no request left, every page is free or cached and every slot is free."""
        allocator, cache, slots = self._memory.allocator, self._memory.cache, self._slots.num_free
        cached, held = cache.num_cached_pages, cache.num_cached_pages - cache.num_evictable_pages
        whole = allocator.num_free + cached == allocator.num_pages
        if held or not whole or slots != self._config.max_running_requests:
            raise EngineError(
                f"the idle scheduler lost track: {allocator.num_free} free and "
                f"{cached} cached pages ({held} still locked) of {allocator.num_pages}, "
                f"{slots} free slots of {self._config.max_running_requests}"
            )

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_free_pages=self._memory.allocator.num_free,
            num_cached_pages=self._memory.cache.num_cached_pages,
            num_total_pages=self._memory.allocator.num_pages,
            num_steps_total=self._counters.steps,
            prompt_tokens_total=self._counters.prompt_tokens,
            cached_tokens_total=self._counters.cached_tokens,
            output_tokens_total=self._counters.output_tokens,
            num_retracted_total=self._counters.retracted,
            num_evictable_pages=self._memory.cache.num_evictable_pages,
        )
