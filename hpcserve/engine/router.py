"""Which replica gets a prompt: the one that has seen most of it, unless that one is too busy.

Prompts are remembered by hashes of their prefixes, in blocks, so that a request goes where its
prefix is in the cache. What a replica has evicted since is not known here: then the prefix is
computed again, and cached again where it will be looked for.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping

from hpcserve.ipc.messages import Int32Array

#: Tokens whose hash is one entry.
BLOCK_TOKENS = 64
#: Entries that are kept, the least recently used go first: at 64 tokens each, 16 M tokens.
MAX_ENTRIES = 1 << 18
#: A replica is too busy for its prefixes with so many more open requests than the idlest one ...
MOST_AHEAD = 16
#: ... or so many times as many.
MOST_TIMES = 1.5
_DIGEST_BYTES = 12


class PrefixRouter:
    """Pure state; used by one event loop."""

    def __init__(self) -> None:
        # Hash of a prefix -> the replica that computed it last.
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._turn = 0

    def choose(self, tokens: Int32Array, loads: Mapping[int, int]) -> int:
        """The replica for a prompt, which is remembered for it.

        loads: open requests of each replica that takes requests; not empty.
        """
        self._turn += 1
        if len(loads) == 1:
            return next(iter(loads))
        hashes = _prefix_hashes(tokens)
        chosen = self._home(hashes, loads)
        if chosen is None:
            # The turn spreads what arrives while all are equally busy.
            chosen = min(loads, key=lambda one: (loads[one], (one - self._turn) % len(loads)))
        for digest in hashes:
            self._seen[digest] = chosen
            self._seen.move_to_end(digest)
        while len(self._seen) > MAX_ENTRIES:
            self._seen.popitem(last=False)
        return chosen

    def forget(self, replica: int) -> None:
        """A replica has lost its cache."""
        for digest in [digest for digest, home in self._seen.items() if home == replica]:
            del self._seen[digest]

    def _home(self, hashes: list[bytes], loads: Mapping[int, int]) -> int | None:
        """The replica of the longest prefix that is known, if it may be asked."""
        least = min(loads.values())
        for digest in reversed(hashes):
            home = self._seen.get(digest)
            if home is None or home not in loads:
                continue
            busy = loads[home]
            if busy - least <= MOST_AHEAD or busy <= least * MOST_TIMES:
                return home
            return None
        return None


def _prefix_hashes(tokens: Int32Array) -> list[bytes]:
    """One for each whole block: of all tokens up to its end."""
    data = memoryview(tokens.tobytes())
    size = BLOCK_TOKENS * 4
    state = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    found = []
    for start in range(0, len(data) - size + 1, size):
        state.update(data[start : start + size])
        found.append(state.copy().digest())
    return found
