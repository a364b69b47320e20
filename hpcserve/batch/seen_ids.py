"""Which custom_ids a run has met, in 16 bytes each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_RECENT_LIMIT = 1 << 15


class SeenIds:
    """A set that only grows.

    Python's own would cost some 150 bytes an id: gigabytes for the files this is made for. Here
    the newest digests are in a set, the others in sorted arrays whose lengths at least double from
    one to the next (as a log-structured merge tree), so that a lookup searches few of them.
    128-bit digests make a false hit unthinkable.
    """

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._levels: list[npt.NDArray[np.bytes_]] = []

    def add_all(self, ids: Sequence[str | int | None]) -> list[bool]:
        """For each id in turn, whether it was there before; None never is."""
        digests = [_digest(custom_id) for custom_id in ids]
        stored = self._stored(digests)
        known = []
        for digest, in_levels in zip(digests, stored, strict=True):
            known.append(digest is not None and (in_levels or digest in self._recent))
            if digest is not None and not known[-1]:
                self._recent.add(digest)
        if len(self._recent) >= _RECENT_LIMIT:
            self._push(np.sort(np.array(list(self._recent), dtype="S16")))
            self._recent = set()
        return known

    def _stored(self, digests: Sequence[bytes | None]) -> list[bool]:
        wanted = np.array([digest or b"" for digest in digests], dtype="S16")
        found = np.zeros(len(digests), dtype=bool)
        for level in self._levels:
            at = np.minimum(np.searchsorted(level, wanted), len(level) - 1)
            found |= level[at] == wanted
        return [bool(hit) for hit in found]

    def _push(self, level: npt.NDArray[np.bytes_]) -> None:
        while self._levels and len(self._levels[-1]) <= 2 * len(level):
            level = np.sort(np.concatenate([self._levels.pop(), level]))
        self._levels.append(level)


def _digest(custom_id: str | int | None) -> bytes | None:
    if custom_id is None:
        return None
    # repr keeps 1 and "1" apart.
    return hashlib.blake2b(repr(custom_id).encode(), digest_size=16).digest()
