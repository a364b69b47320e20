"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one answer. What could be the start of a stop string is held back.

    The match is the one that ends first, of those the longest: so it does not depend on how the
    text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self._stop = tuple(stop)
        self._include = include
        self._longest = max(map(len, self._stop), default=0)
        self._first_characters = frozenset(text[0] for text in self._stop)
        self._held = ""

    def add(self, piece: str) -> tuple[str, str | None]:
        """(text that may be given out, the stop string that was found or None).

        After a match the answer is over; the text then ends before the stop string, or with it
        where `include` is set.
        """
        text = self._held + piece
        found = self._find(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return text[: start + len(stop) if self._include else start], stop
        cut = self._start_of_partial(text)
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """What was held back, when the answer ended otherwise."""
        text, self._held = self._held, ""
        return text

    def _find(self, text: str) -> tuple[int, str] | None:
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = text.find(stop)
            if start >= 0:
                candidate = (start + len(stop), start, stop)
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[1], best[2])

    def _start_of_partial(self, text: str) -> int:
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stop):
                    return start
        return len(text)
