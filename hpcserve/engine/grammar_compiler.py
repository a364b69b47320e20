"""Compiles grammars for one tokenizer (xgrammar; Dong et al., 2024), in a thread of its own.

xgrammar and the tokenizer are loaded with the first grammar: most engines never see one.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from hpcserve.errors import GrammarError, HpcserveError
from hpcserve.grammar import MAX_JSON_WHITESPACE, Grammar
from hpcserve.ipc.messages import GrammarCompiled

#: Compiled grammars that are kept; the least recently used goes first.
_KEPT = 256
_CACHE_BYTES = 512 << 20
#: Where in xgrammar's sources an error arose.
_PLACE = re.compile(r"^\[[^]]*\] \S+:\d+: ")


class GrammarCompiler:
    """folder: the checkpoint's. vocab_size: width of the logits. backend: xgrammar or none."""

    def __init__(
        self, folder: Path, vocab_size: int, eos_token_ids: Iterable[int], backend: str
    ) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._backend = backend
        self._thread: ThreadPoolExecutor | None = None
        self._inner: Any = None
        self._compiled: OrderedDict[Grammar, Future[Any]] = OrderedDict()
        # Asked for by the thread of the steps, and by whoever waits for a compilation.
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> Future[Any]:
        """The grammar as xgrammar wants it, when it is there; the future holds a GrammarError
        where it never will be."""
        with self._lock:
            found = self._compiled.get(grammar)
            if found is None:
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
                found = self._compiled[grammar] = self._thread.submit(self._compile, grammar)
            self._compiled.move_to_end(grammar)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
            return found

    def _compile(self, grammar: Grammar) -> Any:
        if self._backend == "none":
            raise GrammarError("this server takes no grammars: it runs with --grammar-backend none")
        try:
            if self._inner is None:
                self._inner = self._load()
            compile_json = partial(
                self._inner.compile_json_schema, max_whitespace_cnt=MAX_JSON_WHITESPACE
            )
            compile_kind: dict[str, Callable[[str], Any]] = {
                "json_schema": compile_json,
                "regex": self._inner.compile_regex,
                "ebnf": self._inner.compile_grammar,
                "structural_tag": self._inner.compile_structural_tag,
            }
            if grammar.kind == "json_object":
                return compile_json('{"type": "object"}')
            return compile_kind[grammar.kind](grammar.text)
        except HpcserveError:
            raise
        # xgrammar raises RuntimeError and others from C++; all are about this grammar.
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise GrammarError(f"{grammar.kind}: {_reason(error)}") from error

    def _load(self) -> Any:
        try:
            import xgrammar
        except ImportError as error:
            raise GrammarError(
                f"grammars need the package xgrammar ({error}): pip install xgrammar"
            ) from error
        return xgrammar.GrammarCompiler(
            self._vocabulary(xgrammar), max_threads=4, cache_limit_bytes=_CACHE_BYTES
        )

    def _vocabulary(self, xgrammar: Any) -> Any:
        from hpcserve.tokenizer.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self._folder)
        size, stops = self._vocab_size, self._eos_token_ids
        if not tokenizer.backend.is_byte_level:
            from transformers import AutoTokenizer

            inner = AutoTokenizer.from_pretrained(str(self._folder), local_files_only=True)
            return xgrammar.TokenizerInfo.from_huggingface(
                inner, vocab_size=size, stop_token_ids=stops
            )
        # Markers of a chat have no text here, so that they never stand inside of a string.
        texts = [
            b"" if token_id in tokenizer.special_ids else tokenizer.token_bytes(token_id)
            for token_id in range(min(tokenizer.vocab_size, size))
        ]
        raw = xgrammar.VocabType.RAW
        return xgrammar.TokenizerInfo(texts, raw, vocab_size=size, stop_token_ids=stops)


def compiled(grammar: Grammar, done: Future[Any]) -> GrammarCompiled:
    """What a finished compilation tells the core."""
    error = done.exception()
    return GrammarCompiled(grammar, None if error is None else str(error))


def _reason(error: Exception) -> str:
    """The last line that says something: the lines above are places in C++."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _PLACE.sub("", lines[-1]) if lines else type(error).__name__
