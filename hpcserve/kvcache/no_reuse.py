"""No prefix is ever found: `--disable-radix-cache`."""

from __future__ import annotations

from hpcserve.ipc.messages import Int32Array
from hpcserve.kvcache.base import PrefixCache


class NoReuse(PrefixCache[None]):
    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.root = None

    def extend(
        self, node: None, tokens: Int32Array, start_page: int, end_page: int
    ) -> tuple[None, list[int]]:
        return None, []

    def append(self, node: None, tokens: Int32Array, pages: list[int], start_page: int) -> None:
        return None

    def absorb(
        self, node: None, tokens: Int32Array, pages: list[int], start_page: int
    ) -> list[int]:
        return pages[start_page:]

    def lock(self, node: None) -> None:
        pass

    def unlock(self, node: None) -> None:
        pass

    def evict(self, num_pages: int) -> list[int]:
        return []

    def clear(self) -> list[int]:
        return []

    @property
    def num_cached_pages(self) -> int:
        return 0

    @property
    def num_evictable_pages(self) -> int:
        return 0
