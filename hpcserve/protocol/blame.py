"""Errors about a prompt or a grammar name the field of the body that it came from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpcserve.errors import ContextLengthError, GrammarError, InvalidParameterError

#: What the engine and the tokenizer, which know no bodies, call it.
PROMPT = "prompt"


@contextmanager
def blames(field: str, grammar_field: str | None = None) -> Iterator[None]:
    """`field` stands in `param` where the block raises an error about the prompt, and
    `grammar_field` where it raises one about the grammar."""
    try:
        yield
    except ContextLengthError as error:
        error.param = field
        raise
    except GrammarError as error:
        error.param = grammar_field
        raise
    except InvalidParameterError as error:
        if error.param != PROMPT or field == PROMPT:
            raise
        raise InvalidParameterError(field, error.message) from error
