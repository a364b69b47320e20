"""Steps for the stages of a pipeline: disjoint requests, and every sampled token told in time."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.fake_worker import FakeExecutor, expected_tokens
from hpcserve.ipc.messages import EngineCoreRequest
from hpcserve.kvcache.radix import RadixCache
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.scheduler import Scheduler

VOCAB = 1024


class FirstStage(FakeExecutor):
    """Forgets what it sampled, as a stage that never saw it; it knows what it is told."""

    def submit(self, step):
        for new in step.released_slots:
            self._tokens[new] = -1
        for new in step.new_requests:
            self._tokens[new.slot, : len(new.token_ids)] = new.token_ids
        self._tokens[step.known_slots, step.known_positions] = step.known_token_ids
        handle = super().submit(step)
        ends = step.num_computed + step.num_scheduled
        sampled = np.flatnonzero(step.samples)
        self._tokens[step.slots[sampled], ends[sampled]] = -1
        return handle


@pytest.mark.parametrize("num_pages", [64, 14])
@pytest.mark.parametrize("stages", [2, 3])
def test_a_pipeline_is_kept_full_and_gives_the_same_tokens(stages, num_pages):
    """With 14 pages requests are retracted on the way, and start again from what is known."""
    worker = FirstStage(
        num_pages=num_pages, page_size=4, max_slots=6, context_length=48, vocab_size=VOCAB
    )
    config = SchedulerConfig(max_running_requests=6, chunked_prefill_size=16)
    scheduler = Scheduler(
        config, RadixCache(4), num_pages, context_length=48, num_micro_batches=stages
    )
    prompts = {number: [7 * number + i for i in range(3 + number)] for number in range(8)}
    for number, prompt in prompts.items():
        params = SamplingParams(temperature=0.0, max_tokens=12)
        scheduler.add(EngineCoreRequest(number, np.array(prompt, np.int32), params))
    texts: dict[int, list[int]] = {number: [] for number in prompts}
    flying: deque = deque()
    most = 0
    while scheduler.has_requests:
        step = scheduler.schedule() if len(flying) < stages else None
        if step is not None:
            others = {slot for _, slots in flying for slot in slots}
            decodes = set(step.slots[: step.num_decodes].tolist())
            assert not decodes & others
            sampling = set(step.slots[np.flatnonzero(step.samples)].tolist())
            flying.append((worker.submit(step).result(), sampling))
            most = max(most, len(flying))
        if step is None or len(flying) == stages:
            for update in scheduler.update(flying.popleft()[0]):
                texts[update.request.request_id].append(update.token_id)
    while flying:
        scheduler.update(flying.popleft()[0])
    assert most == stages
    for number, prompt in prompts.items():
        assert texts[number] == expected_tokens(prompt, 12, vocab_size=VOCAB)
    scheduler.check_idle()
    assert (scheduler.stats().num_retracted_total > 0) == (num_pages == 14)
