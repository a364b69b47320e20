"""The worker without a model notices what a real one would not: slots used by the wrong request."""

from __future__ import annotations

import numpy as np
import pytest

from hpcserve.fake_worker import FakeExecutor
from hpcserve.ipc.messages import NewRequest, SchedulerOutput
from hpcserve.sampling_params import SamplingParams


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def new(slot: int, page: int) -> NewRequest:
    return NewRequest(slot, int32(5, 6), 2, int32(page), SamplingParams(), 0)


def make_step(*, new=(), released=(), rows=(), pages=(), num_decodes=0) -> SchedulerOutput:
    """rows: (slot, first position, tokens).  pages: (slot, index, page)."""
    slots, starts, counts = zip(*rows, strict=True) if rows else ((), (), ())
    page_slots, indices, ids = zip(*pages, strict=True) if pages else ((), (), ())
    return SchedulerOutput(
        step_id=1,
        slots=int32(*slots),
        num_computed=int32(*starts),
        num_scheduled=int32(*counts),
        samples=int32(*[1] * len(slots)),
        num_decodes=num_decodes,
        released_slots=list(released),
        new_requests=list(new),
        new_page_slots=int32(*page_slots),
        new_page_indices=int32(*indices),
        new_page_ids=int32(*ids),
    )


@pytest.fixture
def worker() -> FakeExecutor:
    """Its slot 0 is taken, with page 0, and its two tokens have run."""
    made = FakeExecutor(num_pages=4, page_size=4, max_slots=2, context_length=12)
    made.submit(make_step(new=[new(0, 0)], rows=[(0, 0, 2)]))
    return made


def test_a_slot_goes_from_one_request_to_the_next_within_a_step(worker):
    worker.submit(make_step(released=[0], new=[new(0, 1)], rows=[(0, 0, 2)]))
    worker.submit(make_step(rows=[(0, 2, 1)]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"new": [new(0, 1)]}, "slot 0 is given out, but a request has it"),
        ({"new": [new(1, 1), new(1, 2)]}, "slot 1 is given out, but a request has it"),
        ({"released": [1]}, "slot 1 is released, but no request has it"),
        ({"released": [0, 0]}, "slot 0 is released, but no request has it"),
        ({"released": [0], "rows": [(0, 2, 1)]}, "a slot that no request has"),
        ({"released": [0], "pages": [(0, 1, 2)]}, "a slot that no request has"),
        ({"rows": [(0, 2, 1), (0, 2, 1)]}, "two rows"),
    ],
)
def test_a_slot_used_wrongly_is_noticed(worker, wrong, words):
    with pytest.raises(AssertionError, match=words):
        worker.submit(make_step(**wrong))


def test_a_decode_that_reads_what_another_of_its_step_writes_is_noticed(worker):
    rows = [(0, 2, 1), (1, 1, 1)]
    shared = {"new": [new(1, 0)], "rows": rows}
    with pytest.raises(AssertionError, match="slot 0 reads what another row"):
        worker.submit(make_step(**shared, num_decodes=2))


def test_a_step_with_a_prompt_may_read_what_another_row_writes(worker):
    worker.submit(make_step(new=[new(1, 0)], rows=[(0, 2, 1), (1, 0, 2)], num_decodes=1))
