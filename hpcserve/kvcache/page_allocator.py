"""The free list of the KV pool, with the prefix cache as its reserve."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpcserve.kvcache.base import PrefixCache


class PageAllocator:
    """Hands out page ids 0 .. num_pages - 1; evicts cached prefixes when the free list is short."""

    def __init__(self, num_pages: int, cache: PrefixCache[Any]) -> None:
        self.num_pages = num_pages
        self._cache = cache
        # Taken from the end, so that low ids go out first.
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` could give: free ones and those of prefixes nobody uses."""
        return len(self._free) + self._cache.num_evictable_pages

    def allocate(self, count: int) -> list[int] | None:
        """`count` pages, or None (and nothing changed) where so many are not to be had."""
        if count == 0:
            return []
        if len(self._free) < count:
            if self.num_available < count:
                return None
            self._free += self._cache.evict(count - len(self._free))
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def free(self, pages: Iterable[int]) -> None:
        self._free.extend(pages)

    def free_pages(self) -> frozenset[int]:
        """The free list as a set, for checks."""
        return frozenset(self._free)
