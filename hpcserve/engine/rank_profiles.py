"""Profiles of ranks in other processes: all of an executor's ranks record, or none does."""

from __future__ import annotations

from collections.abc import Callable

from hpcserve.errors import EngineError
from hpcserve.ipc.messages import ProfileReply, StartProfile, StopProfile


class RankProfiles:
    """Tells the ranks, and makes one answer of theirs.

    ask: sends to every rank and returns all replies.  name: what errors call a rank.
    """

    def __init__(
        self,
        ask: Callable[[StartProfile | StopProfile], list[ProfileReply]],
        name: Callable[[int], str],
    ) -> None:
        self._ask = ask
        self._name = name
        self._are_taken = False

    def start(self, folder: str) -> None:
        """Raises EngineError where they are taken already, or a rank cannot; then none is taken."""
        if self._are_taken:
            raise EngineError("a profile is being taken already; stop it first")
        replies = self._ask(StartProfile(folder))
        if error := self._first_error(replies):
            self._ask(StopProfile(""))
            raise EngineError(error)
        self._are_taken = True

    def stop(self, moment: str) -> list[str]:
        """Let every rank write its trace; returns their paths.

        Raises EngineError where none is taken, or a rank cannot write its own; none is taken then.
        """
        if not self._are_taken:
            raise EngineError("no profile is being taken")
        self._are_taken = False
        replies = self._ask(StopProfile(moment))
        paths = [reply.path for reply in replies if reply.error is None]
        if error := self._first_error(replies):
            written = f"; written: {', '.join(paths)}" if paths else ""
            raise EngineError(error + written)
        return paths

    def discard(self) -> None:
        """Stop without traces; nothing where none is taken."""
        if self._are_taken:
            self._are_taken = False
            self._ask(StopProfile(""))

    def _first_error(self, replies: list[ProfileReply]) -> str:
        """ "" where all went well."""
        found = [f"{self._name(one.rank)}: {one.error}" for one in replies if one.error is not None]
        more = f" (so say {len(found)} of {len(replies)} ranks)" if len(found) > 1 else ""
        return f"{found[0]}{more}" if found else ""
