"""Questions to the engine that every living replica answers: statistics, flushes, profiles."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable
from typing import TypeAlias

from hpcserve.engine.replica import Replica
from hpcserve.errors import EngineDeadError, EngineError
from hpcserve.ipc.messages import ControlReply, ControlRequest

CALL_TIMEOUT_S = 30.0


#: By index of the replica that gave it.
Replies: TypeAlias = dict[int, ControlReply]


class _Call:
    """A control request that several replicas answer."""

    def __init__(self, asked: set[int]) -> None:
        self.done: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
        self._missing = asked
        self._replies: Replies = {}

    def answer(self, index: int, reply: ControlReply) -> None:
        self._replies[index] = reply
        self.give_up(index)

    def give_up(self, index: int) -> None:
        """This replica's answer is here, or will not come."""
        self._missing.discard(index)
        if not self._missing and not self.done.done():
            self.done.set_result(self._replies)


class ControlCalls:
    """The calls of one frontend that wait for replies."""

    def __init__(self) -> None:
        self._open: dict[int, _Call] = {}
        self._ids = itertools.count()

    async def ask(
        self,
        replicas: Iterable[Replica],
        kind: str,
        argument: str = "",
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Replies:
        """As `replies`. Raises EngineError where one refuses, as well."""
        found = await self.replies(replicas, kind, argument, timeout_s=timeout_s)
        for reply in found.values():
            if reply.error is not None:
                raise EngineError(f"{kind}: {reply.error}")
        return found

    async def replies(
        self,
        replicas: Iterable[Replica],
        kind: str,
        argument: str = "",
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Replies:
        """Ask every replica that lives; one that ends meanwhile is not waited for.

        Raises EngineError where none is there or one does not answer in time, EngineDeadError when
        all are gone.
        """
        living = [one for one in replicas if one.ready is not None and one.dead is None]
        if not living:
            raise EngineError(f"no replica is there to {kind}; one may be starting again")
        message = ControlRequest(next(self._ids), kind, argument)
        call = self._open[message.call_id] = _Call({one.index for one in living})
        for one in living:
            one.send(message)
        try:
            return await asyncio.wait_for(call.done, timeout_s)
        except asyncio.TimeoutError:
            raise EngineError(f"the engine did not answer {kind} in {timeout_s:.0f} s") from None
        finally:
            del self._open[message.call_id]

    async def ask_each(
        self, replicas: Iterable[Replica], kind: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Replies:
        """The replies of those that give one in time: one that does not hides no other's."""
        calls = [self.ask([one], kind, timeout_s=timeout_s) for one in replicas]
        replies: Replies = {}
        for found in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(found, dict):
                replies |= found
            elif not isinstance(found, EngineError):
                raise found
        return replies

    def answer(self, replica: Replica, reply: ControlReply) -> None:
        """A reply has come; one to a call that nobody waits for any more is dropped."""
        if (call := self._open.get(reply.call_id)) is not None:
            call.answer(replica.index, reply)

    def give_up(self, replica: Replica) -> None:
        """A replica is gone: no call waits for it."""
        for call in self._open.values():
            call.give_up(replica.index)

    def fail(self, error: EngineDeadError) -> None:
        """No replica is left: every call ends with this error."""
        for call in self._open.values():
            if not call.done.done():
                call.done.set_exception(EngineDeadError(str(error)))
