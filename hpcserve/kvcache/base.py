"""The contract of a prefix cache: which pages of the KV pool hold which prefixes.

Ownership. Every page is owned by exactly one of: the allocator's free list, the prefix cache, one
running request. A request's first pages belong to the cache (it holds a lock on the node where
they end, so they stay), the pages behind them to the request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from hpcserve.ipc.messages import Int32Array

Node = TypeVar("Node")


class PrefixCache(ABC, Generic[Node]):
    """Prefixes in whole pages. A node stands for the prefix that ends at it."""

    page_size: int
    #: The empty prefix.
    root: Node

    @abstractmethod
    def extend(
        self, node: Node, tokens: Int32Array, start_page: int, end_page: int
    ) -> tuple[Node, list[int]]:
        """Follow `tokens` from `node`, which ends at page `start_page`, at most to `end_page`.

        Returns the node reached and the pages on the way (none: nothing further is cached).
        """

    @abstractmethod
    def append(
        self, node: Node, tokens: Int32Array, pages: list[int], start_page: int
    ) -> Node | None:
        """Hang pages[start_page:] under `node`; they belong to the cache from now on.

        The caller's lock moves from `node` to the node returned. Returns None, and takes nothing,
        where the cache already holds the first of these pages' tokens in another page.
        tokens: at least len(pages) * page_size of them.
        """

    @abstractmethod
    def absorb(
        self, node: Node, tokens: Int32Array, pages: list[int], start_page: int
    ) -> list[int]:
        """Take pages[start_page:] for good; no lock is moved or taken.

        Returns those whose tokens are cached already: they stay the caller's, to be freed.
        """

    @abstractmethod
    def lock(self, node: Node) -> None:
        """Keep the prefix of `node` from eviction, once per call."""

    @abstractmethod
    def unlock(self, node: Node) -> None:
        """Undo one `lock`."""

    @abstractmethod
    def evict(self, num_pages: int) -> list[int]:
        """Give up to `num_pages` pages back, least recently used prefixes' ends first."""

    @abstractmethod
    def clear(self) -> list[int]:
        """Give every page back that no lock holds."""

    @property
    @abstractmethod
    def num_cached_pages(self) -> int:
        """Pages the cache owns."""

    @property
    @abstractmethod
    def num_evictable_pages(self) -> int:
        """Pages that `evict` could give back now."""
