"""The radix tree against a dictionary of prefixes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcserve.kvcache.page_allocator import PageAllocator
from hpcserve.kvcache.radix import RadixCache, RadixNode


def tokens(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def match(cache: RadixCache, ids: np.ndarray) -> tuple[RadixNode, list[int]]:
    return cache.extend(cache.root, ids, 0, len(ids) // cache.page_size)


def pages_in_tree(cache: RadixCache) -> list[int]:
    found: list[int] = []
    stack = [cache.root]
    while stack:
        node = stack.pop()
        found += node.pages
        stack += node.children.values()
    return found


def test_splits_where_prompts_part() -> None:
    cache = RadixCache(2)
    assert cache.absorb(cache.root, tokens(1, 2, 3, 4, 5, 6), [10, 11, 12], 0) == []
    assert cache.absorb(cache.root, tokens(1, 2, 3, 4, 7, 8), [20, 21, 22], 0) == [20, 21]
    assert match(cache, tokens(1, 2, 3, 4, 7, 8, 9))[1] == [10, 11, 22]
    assert match(cache, tokens(1, 2, 3, 9))[1] == [10]
    assert match(cache, tokens(9, 9))[1] == []
    assert cache.num_cached_pages == 4


def test_a_prefix_matches_in_whole_pages_only() -> None:
    cache = RadixCache(4)
    cache.absorb(cache.root, tokens(*range(8)), [0, 1], 0)
    assert match(cache, tokens(0, 1, 2, 3, 4, 5, 6, 9))[1] == [0]
    assert match(cache, tokens(0, 1, 2))[1] == []


def test_append_moves_the_lock_and_refuses_what_is_there() -> None:
    cache = RadixCache(1)
    node = cache.append(cache.root, tokens(1, 2), [5, 6], 0)
    assert node is not None
    assert cache.append(cache.root, tokens(1, 9), [7, 8], 0) is None
    assert cache.evict(10) == []
    deeper = cache.append(node, tokens(1, 2, 3), [5, 6, 9], 2)
    assert deeper is not None
    cache.unlock(deeper)
    assert sorted(cache.evict(10)) == [5, 6, 9]
    assert cache.num_cached_pages == 0


def test_a_held_node_keeps_its_meaning_when_its_edge_is_split() -> None:
    cache = RadixCache(1)
    held = cache.append(cache.root, tokens(1, 2, 3), [0, 1, 2], 0)
    assert held is not None
    match(cache, tokens(1, 9))
    assert cache.append(held, tokens(1, 2, 3, 4), [0, 1, 2, 3], 3) is not None
    assert match(cache, tokens(1, 2, 3, 4))[1] == [0, 1, 2, 3]


def test_the_least_recently_used_end_goes_first() -> None:
    cache = RadixCache(1)
    cache.absorb(cache.root, tokens(1, 2, 3), [1, 2, 3], 0)
    cache.absorb(cache.root, tokens(4, 5), [4, 5], 0)
    match(cache, tokens(1, 2, 3))
    assert cache.evict(1) == [5]
    assert cache.evict(1) == [4]
    assert cache.evict(2) == [2, 3]
    assert match(cache, tokens(1, 2, 3))[1] == [1]


def test_a_prefix_that_was_left_last_goes_last() -> None:
    """A request uses its prefix until it leaves, not only when it comes."""
    cache = RadixCache(1)
    first = cache.append(cache.root, tokens(1, 2), [1, 2], 0)
    match(cache, tokens(9))
    second = cache.append(cache.root, tokens(5, 6), [5, 6], 0)
    assert first is not None and second is not None
    for node, ids in ((second, tokens(5, 6)), (first, tokens(1, 2))):
        assert cache.absorb(node, ids, ids.tolist(), 2) == []
        cache.unlock(node)
    assert sorted(cache.evict(2)) == [5, 6]


def test_pages_that_the_tokens_do_not_fill_are_no_prefix() -> None:
    cache = RadixCache(4)
    with pytest.raises(ValueError, match="7 tokens do not fill 2 pages"):
        cache.append(cache.root, tokens(*range(7)), [0, 1], 0)
    with pytest.raises(ValueError, match="7 tokens do not fill 2 pages"):
        cache.absorb(cache.root, tokens(*range(7)), [0, 1], 0)


def test_the_allocator_evicts_only_what_it_must() -> None:
    cache = RadixCache(1)
    allocator = PageAllocator(4, cache)
    first = allocator.allocate(3)
    assert first is not None
    assert cache.absorb(cache.root, tokens(7, 8, 9), first, 0) == []
    assert allocator.num_available == 4
    second = allocator.allocate(2)
    assert second is not None
    assert cache.num_cached_pages == 2
    assert allocator.allocate(3) is None
    assert cache.num_cached_pages == 2


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32), page_size=st.sampled_from([1, 2, 3]))
def test_random_use(seed: int, page_size: int) -> None:
    """Every page has one owner, and a match gives the very pages that were put in."""
    rng = random.Random(seed)
    cache = RadixCache(page_size)
    allocator = PageAllocator(24, cache)
    content: dict[int, tuple[int, ...]] = {}  # page -> the prefix that ends in it
    held: list[RadixNode] = []
    for _ in range(60):
        action = rng.random()
        ids = tokens(*[rng.randrange(2) for _ in range(page_size * rng.randrange(1, 6))])
        if action < 0.5:
            node, found = match(cache, ids)
            cache.lock(node)
            new = allocator.allocate(len(ids) // page_size - len(found))
            if new is not None:
                for i, page in enumerate(new, start=len(found)):
                    content[page] = tuple(ids[: (i + 1) * page_size])
                allocator.free(cache.absorb(node, ids, found + new, len(found)))
            cache.unlock(node)
        elif action < 0.65:
            node, _ = match(cache, ids)
            cache.lock(node)
            held.append(node)
        elif action < 0.8 and held:
            cache.unlock(held.pop(rng.randrange(len(held))))
        elif action < 0.9:
            allocator.free(cache.evict(rng.randrange(1, 4)))
        for i, page in enumerate(match(cache, ids)[1]):
            assert content[page] == tuple(ids[: (i + 1) * page_size])
        in_tree = pages_in_tree(cache)
        assert len(in_tree) == len(set(in_tree)) == cache.num_cached_pages
        assert allocator.free_pages().isdisjoint(in_tree)
        assert allocator.num_free + len(in_tree) == 24
    for node in held:
        cache.unlock(node)
    assert cache.num_evictable_pages == cache.num_cached_pages
    assert len(cache.clear()) + allocator.num_free == 24
    assert cache.num_cached_pages == 0


def test_a_page_is_never_given_back_while_it_is_locked() -> None:
    cache = RadixCache(1)
    node = cache.append(cache.root, tokens(1, 2, 3), [1, 2, 3], 0)
    assert node is not None
    upper, _ = match(cache, tokens(1, 2, 9))
    cache.lock(upper)
    cache.unlock(node)
    assert cache.evict(3) == [3]
    cache.unlock(upper)
    assert sorted(cache.evict(3)) == [1, 2]
    with pytest.raises(ValueError, match="root"):
        cache._split(cache.root, 0)
