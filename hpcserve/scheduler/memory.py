"""A request's pages over its life: found in the cache, allocated, handed to the cache, released."""

from __future__ import annotations

from typing import Any

from hpcserve.kvcache.base import PrefixCache
from hpcserve.kvcache.page_allocator import PageAllocator
from hpcserve.scheduler.request import Request


class RequestMemory:
    """All changes of `Request.pages`, `node`, `num_cache_pages` and `num_computed` by the cache.

    A prompt's pages enter the prefix cache as soon as the step that computes them is issued, not
    when it has run: steps run in order, and within a step every layer writes all rows' KV before
    it reads, so whoever finds a prefix finds its KV written. Requests of one batch that share a
    prefix therefore compute it once. In a step of decodes alone, rows may be read before others are
    written (where pages have several tokens): a row of one token fills no page of its prompt, since
    all but a prompt's last chunk end with a page, so nobody finds what it computes in that step.
    """

    def __init__(self, cache: PrefixCache[Any], num_pages: int) -> None:
        self.cache = cache
        self.allocator = PageAllocator(num_pages, cache)
        self.page_size = cache.page_size

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def num_missing_pages(self, request: Request) -> int:
        """Pages that the tokens it has now still need."""
        return max(0, self.num_pages_for(request.num_tokens) - len(request.pages))

    def match(self, request: Request) -> tuple[Any, list[int]]:
        """The longest cached prefix of a waiting request: its node and pages."""
        if request.params.prompt_logprobs is not None:
            return self.cache.root, []  # every position of the prompt must be computed
        # The last token is always computed: its logits give the next one.
        end_page = (request.num_known - 1) // self.page_size
        return self.cache.extend(self.cache.root, request.known_token_ids(), 0, end_page)

    def num_cached(self, request: Request) -> int:
        """Tokens of a waiting request's prefix that are cached now."""
        return len(self.match(request)[1]) * self.page_size

    def enter(self, request: Request, node: Any, pages: list[int]) -> None:
        """Start from a prefix found by `match`, whose node the caller has locked."""
        request.node = node
        request.pages = list(pages)
        request.num_cache_pages = len(pages)
        request.num_computed = len(pages) * self.page_size

    def publish(self, request: Request) -> None:
        """Hand the full pages of the prompt that are computed now to the prefix cache."""
        end = min(request.num_computed, request.num_prompt_tokens) // self.page_size
        if end <= request.num_cache_pages:
            return
        node = self.cache.append(
            request.node, request.prompt_token_ids, request.pages[:end], request.num_cache_pages
        )
        if node is not None:
            request.node = node
            request.num_cache_pages = end

    def release(self, request: Request) -> None:
        """Give all pages back; what is computed of whole pages stays in the cache."""
        # The ids of pending tokens are not known, so their KV could not be found again.
        end = min(request.num_computed, request.num_known) // self.page_size
        tokens = request.known_token_ids()
        duplicates = self.cache.absorb(
            request.node, tokens, request.pages[:end], request.num_cache_pages
        )
        self.allocator.free(duplicates)
        self.allocator.free(request.pages[end:])
        self.cache.unlock(request.node)
        request.node = None
        request.pages = []
        request.num_cache_pages = request.num_computed = 0
