"""What cannot run is refused before it is sent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcserve.errors import ContextLengthError, InvalidParameterError
from hpcserve.ipc.messages import Int32Array, Ready
from hpcserve.sampling_params import SamplingParams


def checked_prompt(
    prompt_token_ids: Sequence[int] | Int32Array, params: SamplingParams, ready: Ready
) -> Int32Array:
    """The prompt as it is sent: int32[n].  ready: what the engine said of itself.

    Raises InvalidParameterError, or ContextLengthError.
    """
    params.validate(vocab_size=ready.vocab_size)
    num_tokens = len(prompt_token_ids)
    if num_tokens == 0:
        raise InvalidParameterError("prompt", "it is empty")
    if num_tokens + (params.max_tokens or 1) > ready.context_length:
        raise ContextLengthError(num_tokens, params.max_tokens, ready.context_length)
    try:
        ids = np.asarray(prompt_token_ids, dtype=np.int32)
    except (OverflowError, ValueError, TypeError) as error:
        raise InvalidParameterError("prompt", f"no list of token ids: {error}") from error
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= ready.vocab_size:
        raise InvalidParameterError(
            "prompt",
            f"token id {low if low < 0 else high} is out of range "
            f"(the vocabulary has {ready.vocab_size})",
        )
    return ids
