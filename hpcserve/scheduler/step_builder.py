"""Collects one step's rows and page-table changes into a SchedulerOutput."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from hpcserve.ipc.messages import Int32Array, NewRequest, SchedulerOutput
from hpcserve.scheduler.request import Request

#: The request, its first position in the step, and whether it samples.
StepRow: TypeAlias = tuple[Request, int, bool]


class StepBuilder:
    """Rows are added in any order; `build` puts decodes first."""

    def __init__(self) -> None:
        # (request, first position, number of tokens, samples)
        self._decodes: list[tuple[Request, int]] = []
        self._prefills: list[tuple[Request, int, int, int]] = []
        self._page_slots: list[int] = []
        self._page_indices: list[int] = []
        self._page_ids: list[int] = []
        self._new_requests: list[NewRequest] = []

    def __len__(self) -> int:
        return len(self._decodes) + len(self._prefills)

    def add_row(self, request: Request, start: int, count: int, *, samples: bool) -> None:
        # Rows that still owe log-probabilities of the prompt need its states, which a captured step
        # of decodes does not give.
        owes = request.params.prompt_logprobs is not None and start < request.num_prompt_tokens - 1
        if count == 1 and samples and not owes:
            self._decodes.append((request, start))
        else:
            self._prefills.append((request, start, count, int(samples)))

    def add_new_request(self, request: Request) -> None:
        """A request that just got its slot and the pages of its cached prefix."""
        self._new_requests.append(
            NewRequest(
                slot=request.slot,
                token_ids=request.known_token_ids(),
                num_prompt_tokens=request.num_prompt_tokens,
                page_ids=_int32(request.pages),
                params=request.params,
                seed=request.seed,
            )
        )

    def request_keys(self) -> set[tuple[bytes, int]]:
        """Keys of the requests that have a row already."""
        keys = {request.key for request, _ in self._decodes}
        return keys | {row[0].key for row in self._prefills}

    def add_pages(self, slot: int, first_index: int, pages: list[int]) -> None:
        """Pages appended to a slot's page table from `first_index` on."""
        count = len(pages)
        self._page_slots += [slot] * count
        self._page_indices += range(first_index, first_index + count)
        self._page_ids += pages

    def build(
        self, step_id: int, released_slots: list[int]
    ) -> tuple[SchedulerOutput, list[StepRow]]:
        """The message, and what the scheduler must remember of each of its rows."""
        num_decodes = len(self._decodes)
        ones = [1] * num_decodes
        slots = [request.slot for request, _ in self._decodes]
        starts = [start for _, start in self._decodes]
        rows: list[StepRow] = [(request, start, True) for request, start in self._decodes]
        rows += [(request, start, bool(samples)) for request, start, _, samples in self._prefills]
        output = SchedulerOutput(
            step_id=step_id,
            slots=_int32(slots + [row[0].slot for row in self._prefills]),
            num_computed=_int32(starts + [row[1] for row in self._prefills]),
            num_scheduled=_int32(ones + [row[2] for row in self._prefills]),
            samples=_int32(ones + [row[3] for row in self._prefills]),
            num_decodes=num_decodes,
            released_slots=released_slots,
            new_requests=self._new_requests,
            new_page_slots=_int32(self._page_slots),
            new_page_indices=_int32(self._page_indices),
            new_page_ids=_int32(self._page_ids),
        )
        return output, rows


def _int32(values: list[int]) -> Int32Array:
    return np.array(values, np.int32)
