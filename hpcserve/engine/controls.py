"""What operators ask of an engine: its gauges, a flush, a profile, a replica out of service."""

from __future__ import annotations

from datetime import datetime

from hpcserve.engine.control_calls import CALL_TIMEOUT_S, ControlCalls, Replies
from hpcserve.engine.replica import ReplicaStatus
from hpcserve.engine.replica_set import ReplicaSet
from hpcserve.errors import EngineError
from hpcserve.ipc.messages import SchedulerStats
from hpcserve.scheduler.lockstep import total_stats

#: Writing traces takes longer than anything else.
_PROFILE_TIMEOUT_S = 600.0


class EngineControls:
    """This part of EngineClient."""

    _replicas: ReplicaSet
    _calls: ControlCalls

    async def stats(self) -> SchedulerStats:
        """Gauges and counters, summed over the replicas that live."""
        replies = (await self._ask("stats")).values()
        stats = [reply.stats for reply in replies if reply.stats is not None]
        if not stats:
            raise EngineError("the engine gave no statistics")
        return total_stats(stats)

    async def replica_status(self, timeout_s: float = CALL_TIMEOUT_S) -> list[ReplicaStatus]:
        """How each replica is; those that are away, or do not answer in time, give no gauges.

        Raises EngineDeadError when all are gone.
        """
        self._replicas.check_alive()
        asked = self._calls.ask_each(self._replicas.members, "stats", timeout_s=timeout_s)
        return self._replicas.status(await asked)

    def drain_replica(self, index: int) -> None:
        """Give a replica no more requests; it is drained when its open ones have ended.

        Raises InvalidParameterError for one that there is not, EngineError where no other would
        take requests.
        """
        self._replicas.drain(index)

    def resume_replica(self, index: int) -> None:
        """Give a drained replica requests again.  Raises InvalidParameterError."""
        self._replicas.resume(index)

    async def flush_cache(self) -> None:
        """Drop every page of the KV cache that no request uses."""
        await self._ask("flush_cache")

    async def start_profile(self, folder: str) -> None:
        """Let every rank of every replica record a torch profiler trace.

        folder: of the server's node, and by the same path of each other node that has ranks.
        Raises EngineError where one cannot; then no other goes on with what this call began.
        """
        replies = await self._profile("start_profile", folder)
        refusal = self._refusal("start_profile", replies)
        if refusal is None:
            return
        begun = {index for index, reply in replies.items() if reply.error is None}
        if members := [one for one in self._replicas.members if one.index in begun]:
            await self._calls.ask_each(members, "discard_profile", timeout_s=_PROFILE_TIMEOUT_S)
        raise EngineError(refusal)

    async def stop_profile(self) -> list[str]:
        """The paths of the traces, one a rank, which are written now.

        Raises EngineError where none is taken, or one cannot be written.
        """
        now = datetime.now()
        moment = f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"
        replies = await self._profile("stop_profile", moment)
        files = [path for _, reply in sorted(replies.items()) for path in reply.results]
        if (refusal := self._refusal("stop_profile", replies)) is not None:
            written = f"; of the other replicas: {', '.join(files)}" if files else ""
            raise EngineError(refusal + written)
        return files

    async def _profile(self, kind: str, argument: str) -> Replies:
        self._replicas.check_alive()
        return await self._calls.replies(
            self._replicas.members, kind, argument, timeout_s=_PROFILE_TIMEOUT_S
        )

    def _refusal(self, kind: str, replies: Replies) -> str | None:
        """The first error, with its replica where there are several."""
        for index, reply in sorted(replies.items()):
            if reply.error is not None:
                where = f"replica {index}: " if len(self._replicas.members) > 1 else ""
                return f"{kind}: {where}{reply.error}"
        return None

    async def _ask(
        self, kind: str, argument: str = "", *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Replies:
        self._replicas.check_alive()
        return await self._calls.ask(self._replicas.members, kind, argument, timeout_s=timeout_s)
