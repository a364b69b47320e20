"""A radix tree over pages of tokens: the longest cached prefix of a prompt, and LRU eviction.

An edge holds any number of whole pages; two edges below one node differ in their first page. The
idea of a radix tree over the KV cache is RadixAttention (Zheng et al., 2023, "SGLang: Efficient
Execution of Structured Language Model Programs").
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np

from hpcserve.ipc.messages import Int32Array
from hpcserve.kvcache.base import PrefixCache

_TOKEN_BYTES = 4


class RadixNode:
    """One edge of the tree with the node it ends in.

    key: the edge's tokens, int32 bytes, whole pages.  pages: their page ids.
    num_locks: how many requests hold this prefix or a longer one.
    last_used: tick of the last match that came through.
    """

    __slots__ = ("children", "key", "last_used", "num_locks", "pages", "parent")

    def __init__(self, parent: RadixNode | None, key: bytes, pages: list[int], tick: int) -> None:
        self.parent = parent
        self.key = key
        self.pages = pages
        self.children: dict[bytes, RadixNode] = {}
        self.num_locks = 0
        self.last_used = tick


class RadixCache(PrefixCache[RadixNode]):
    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._page_bytes = page_size * _TOKEN_BYTES
        self.root = RadixNode(None, b"", [], 0)
        self.root.num_locks = 1  # never evicted
        self._num_cached = 0
        self._num_evictable = 0
        self._tick = 0
        # (last_used, serial, node) of leaves that were evictable when pushed; checked when popped.
        self._evictable: list[tuple[int, int, RadixNode]] = []
        self._serial = itertools.count()

    def extend(
        self, node: RadixNode, tokens: Int32Array, start_page: int, end_page: int
    ) -> tuple[RadixNode, list[int]]:
        self._tick += 1
        node.last_used = self._tick
        key = tokens[start_page * self.page_size : end_page * self.page_size].tobytes()
        pages: list[int] = []
        offset = 0
        while offset < len(key):
            child = node.children.get(key[offset : offset + self._page_bytes])
            if child is None:
                break
            shared = self._num_shared_pages(child.key, key, offset)
            if shared < len(child.pages):
                child = self._split(child, shared)
            child.last_used = self._tick
            pages += child.pages
            offset += len(child.key)
            node = child
        return node, pages

    def append(
        self, node: RadixNode, tokens: Int32Array, pages: list[int], start_page: int
    ) -> RadixNode | None:
        key = self._key(tokens, start_page, len(pages))
        if not key or key[: self._page_bytes] in node.children:
            return None
        child = self._add_child(node, key, pages[start_page:])
        child.num_locks = 1
        self._num_evictable -= len(child.pages)
        return child

    def absorb(
        self, node: RadixNode, tokens: Int32Array, pages: list[int], start_page: int
    ) -> list[int]:
        end, found = self.extend(node, tokens, start_page, len(pages))
        start_new = start_page + len(found)
        if start_new < len(pages):
            key = self._key(tokens, start_new, len(pages))
            self._note_evictable(self._add_child(end, key, pages[start_new:]))
        return pages[start_page:start_new]

    def lock(self, node: RadixNode) -> None:
        current: RadixNode | None = node
        while current is not None and current is not self.root:
            if current.num_locks == 0:
                self._num_evictable -= len(current.pages)
            current.num_locks += 1
            current = current.parent

    def unlock(self, node: RadixNode) -> None:
        current: RadixNode | None = node
        while current is not None and current is not self.root:
            if current.num_locks == 0:
                raise ValueError("a prefix was unlocked more often than it was locked")
            current.num_locks -= 1
            if current.num_locks == 0:
                self._num_evictable += len(current.pages)
                self._note_evictable(current)
            current = current.parent

    def evict(self, num_pages: int) -> list[int]:
        freed: list[int] = []
        while self._evictable and len(freed) < num_pages:
            last_used, _, node = heapq.heappop(self._evictable)
            if node.num_locks or node.children or node.parent is None:
                continue  # locked, grown or gone since it was pushed
            if last_used != node.last_used:
                self._note_evictable(node)  # used since: back to its new place
                continue
            wanted = num_pages - len(freed)
            freed += self._cut_leaf(node, wanted)
        self._num_cached -= len(freed)
        self._num_evictable -= len(freed)
        return freed

    def clear(self) -> list[int]:
        return self.evict(self._num_evictable)

    @property
    def num_cached_pages(self) -> int:
        return self._num_cached

    @property
    def num_evictable_pages(self) -> int:
        return self._num_evictable

    def _key(self, tokens: Int32Array, start_page: int, end_page: int) -> bytes:
        if len(tokens) < end_page * self.page_size:
            raise ValueError(f"{len(tokens)} tokens do not fill {end_page} pages")
        return tokens[start_page * self.page_size : end_page * self.page_size].tobytes()

    def _num_shared_pages(self, edge: bytes, key: bytes, offset: int) -> int:
        """Whole pages that `edge` and key[offset:] have in common, from the start."""
        end = offset + len(edge)
        if key[offset:end] == edge:
            return len(edge) // self._page_bytes
        length = min(len(edge), len(key) - offset)
        a = np.frombuffer(edge, np.int32, length // _TOKEN_BYTES)
        b = np.frombuffer(key, np.int32, length // _TOKEN_BYTES, offset)
        differs = a != b
        num_tokens = int(differs.argmax()) if differs.any() else len(a)
        return num_tokens // self.page_size

    def _split(self, node: RadixNode, num_pages: int) -> RadixNode:
        """Cut an edge after `num_pages`; returns the new upper node.

        The lower part keeps the object, since requests hold nodes for the prefix ending there.
        """
        cut = num_pages * self._page_bytes
        parent = node.parent
        if parent is None:
            raise ValueError("the root has no edge to split")
        upper = RadixNode(parent, node.key[:cut], node.pages[:num_pages], node.last_used)
        upper.num_locks = node.num_locks
        parent.children[upper.key[: self._page_bytes]] = upper
        node.key, node.pages, node.parent = node.key[cut:], node.pages[num_pages:], upper
        upper.children[node.key[: self._page_bytes]] = node
        return upper

    def _add_child(self, parent: RadixNode, key: bytes, pages: list[int]) -> RadixNode:
        child = RadixNode(parent, key, pages, self._tick)
        parent.children[key[: self._page_bytes]] = child
        self._num_cached += len(pages)
        self._num_evictable += len(pages)
        return child

    def _note_evictable(self, node: RadixNode) -> None:
        if node is not self.root and not node.children:
            heapq.heappush(self._evictable, (node.last_used, next(self._serial), node))

    def _cut_leaf(self, node: RadixNode, num_pages: int) -> list[int]:
        """Remove the last `num_pages` of an evictable leaf, or the whole leaf if it has no more."""
        parent = node.parent
        if parent is None:
            raise ValueError("the root is never evicted")
        if num_pages < len(node.pages):
            keep = len(node.pages) - num_pages
            freed = node.pages[keep:]
            node.pages, node.key = node.pages[:keep], node.key[: keep * self._page_bytes]
            self._note_evictable(node)
            return freed
        del parent.children[node.key[: self._page_bytes]]
        node.parent = None
        if parent.num_locks == 0:
            self._note_evictable(parent)
        return node.pages
