"""Replicas in lockstep: each sees a scheduler of its own, all of them one step."""

from __future__ import annotations

import numpy as np

from hpcserve.config.scheduler import SchedulerConfig
from hpcserve.engine.executor_mp import joined
from hpcserve.fake_worker import FakeExecutor, expected_tokens
from hpcserve.ipc.messages import EngineCoreRequest
from hpcserve.kvcache.radix import RadixCache
from hpcserve.sampling_params import SamplingParams
from hpcserve.scheduler.lockstep import LockstepScheduler
from hpcserve.scheduler.scheduler import Scheduler

VOCAB = 1024


def run(num_requests: int, num_replicas: int) -> tuple[dict[int, list[int]], list[list[int]]]:
    """Texts by request, and the tokens of each replica in each step."""
    shape = {"num_pages": 64, "page_size": 16, "max_slots": 4, "context_length": 256}
    workers = [FakeExecutor(**shape, vocab_size=VOCAB) for _ in range(num_replicas)]
    config = SchedulerConfig(max_running_requests=4, chunked_prefill_size=32)
    replicas = [Scheduler(config, RadixCache(16), 64, context_length=256) for _ in workers]
    scheduler = LockstepScheduler(replicas, lambda ids, loads: min(loads, key=loads.__getitem__))
    for number in range(num_requests):
        params = SamplingParams(temperature=0.0, max_tokens=3 + number)
        scheduler.add(EngineCoreRequest(number, np.arange(5 + 9 * number, dtype=np.int32), params))
    texts: dict[int, list[int]] = {number: [] for number in range(num_requests)}
    counts = []
    while scheduler.has_requests:
        step = scheduler.schedule()
        assert step is not None
        counts.append(step.steps[0].replica_tokens)
        assert all(one.replica_tokens == counts[-1] for one in step.steps)
        parts = []
        for dp_rank, (worker, one) in enumerate(zip(workers, step.steps, strict=True)):
            assert int(one.num_scheduled.sum()) == counts[-1][dp_rank]
            parts.append(worker.submit(one).result())
            parts[-1].dp_rank = dp_rank
        for update in scheduler.update(joined(parts[::-1])):
            texts[update.request.request_id].append(update.token_id)
    scheduler.check_idle()
    assert scheduler.stats().num_steps_total == sum(n > 0 for step in counts for n in step)
    return texts, counts


def test_everyone_gets_the_tokens_of_a_run_alone():
    texts, counts = run(num_requests=7, num_replicas=3)
    for number, text in texts.items():
        prompt = list(range(5 + 9 * number))
        assert text == expected_tokens(prompt, 3 + number, vocab_size=VOCAB)
    assert all(len(step) == 3 for step in counts)


def test_a_replica_without_work_is_in_every_step():
    texts, counts = run(num_requests=1, num_replicas=2)
    assert len(texts[0]) == 3
    assert [step[1] for step in counts] == [0] * 3
