"""Where each request with a grammar stands in it, by slot; usually there is none.

The mask of a row's next token depends on the token before it, which may still be on its way from
the device: `apply` waits for it while the device is busy with the row's logits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpcserve.engine.executor import StepHandle
from hpcserve.engine.grammar_compiler import GrammarCompiler
from hpcserve.engine.staging import to_device
from hpcserve.ipc.messages import NewRequest
from hpcserve.log import get_logger
from hpcserve.ops.sampling import apply_token_mask

logger = get_logger(__name__)

_BITS = 32


@dataclass
class Constraint:
    """matcher: xgrammar's.  over: the grammar is complete, or was left: only EOS may follow."""

    matcher: Any
    over: bool = False

    def accept(self, token_id: int) -> None:
        if self.over:
            return
        if not self.matcher.accept_token(token_id):
            logger.error("token %d does not fit the grammar; the answer ends here", token_id)
            self.over = True
        elif self.matcher.is_terminated():
            self.over = True


class Constraints:
    def __init__(
        self,
        compiler: GrammarCompiler,
        vocab_size: int,
        eos_token_ids: Iterable[int],
        device: torch.device,
    ) -> None:
        self._compiler = compiler
        self._device = device
        self._words = -(-vocab_size // _BITS)
        self._slots: dict[int, Constraint] = {}
        # Steps whose tokens have not been followed yet, oldest first.
        self._pending: deque[tuple[StepHandle, list[tuple[int, Constraint]]]] = deque()
        self._only_eos = np.zeros(self._words, np.uint32)
        # Some checkpoints name an end that their vocabulary does not hold.
        for token_id in (one for one in eos_token_ids if 0 <= one < vocab_size):
            self._only_eos[token_id // _BITS] |= np.uint32(1 << token_id % _BITS)
        self._batch: Any = None

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, request: NewRequest) -> None:
        """Start a request's grammar, if it has one; after a retraction, where its outputs left it.

        Raises GrammarError where it cannot be compiled, which the core asked about before.
        """
        grammar = request.params.grammar
        if grammar is None:
            return
        import xgrammar

        if self._batch is None:
            self._batch = xgrammar.BatchGrammarMatcher()
        constraint = Constraint(xgrammar.GrammarMatcher(self._compiler.compile(grammar).result()))
        for token_id in request.token_ids[request.num_prompt_tokens :].tolist():
            constraint.accept(token_id)
        self._slots[request.slot] = constraint

    def release(self, slot: int) -> None:
        self._slots.pop(slot, None)

    def holds(self, slots: Sequence[int]) -> bool:
        return any(slot in self._slots for slot in slots)

    def follow(self, handle: StepHandle, rows: Sequence[int], slots: Sequence[int]) -> None:
        """A step was issued that samples, in its rows `rows`, a token for each of `slots`."""
        waiting = [
            (row, self._slots[slot])
            for row, slot in zip(rows, slots, strict=True)
            if slot in self._slots
        ]
        if waiting:
            self._pending.append((handle, waiting))

    def apply(self, logits: torch.Tensor, slots: Sequence[int]) -> None:
        """Forbid, in place, what the grammars of some rows do not allow next."""
        self._catch_up()
        rows = [row for row, slot in enumerate(slots) if slot in self._slots]
        if not rows:
            return
        constraints = [self._slots[slots[row]] for row in rows]
        mask = to_device(self._masks(constraints), self._device)
        apply_token_mask(logits, mask, to_device(np.array(rows, np.int64), self._device))

    def _catch_up(self) -> None:
        while self._pending:
            handle, waiting = self._pending.popleft()
            token_ids = handle.result().sampled_token_ids
            for row, constraint in waiting:
                constraint.accept(int(token_ids[row]))

    def _masks(self, constraints: list[Constraint]) -> npt.NDArray[np.int32]:
        """int32[n, words], a bit for each token that may come next."""
        masks = np.zeros((len(constraints), self._words), np.int32)
        masks[:] = self._only_eos.view(np.int32)
        open_rows = [row for row, constraint in enumerate(constraints) if not constraint.over]
        if open_rows:
            matchers = [constraints[row].matcher for row in open_rows]
            self._batch.batch_fill_next_token_bitmask(matchers, masks, open_rows)
        return masks
