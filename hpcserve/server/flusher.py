"""All streams with news are written in one turn of the event loop, not one task each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Flusher:
    """Runs what was added since its last turn, in order; several steps may fall into one turn."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []

    def add(self, flush: Callable[[], None]) -> None:
        """Call `flush` soon. It must not raise."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._run)
        self._due.append(flush)

    def _run(self) -> None:
        due, self._due = self._due, []
        for flush in due:
            flush()
