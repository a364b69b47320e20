"""Frequencies of every kind of scaling equal transformers'."""

from __future__ import annotations

import pytest
import torch

from hpcserve.errors import ModelError, UnsupportedModelError
from hpcserve.layers.rotary import inverse_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 3.0},
        LLAMA3,
        YARN,
        {**YARN, "beta_fast": 20, "beta_slow": 2, "attention_factor": 1.25},
        {**YARN, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.2},
    ],
)
@pytest.mark.parametrize(("head_dim", "theta"), [(128, 500000.0), (64, 1000000.0), (32, 10000.0)])
def test_equal_to_transformers(scaling, head_dim, theta):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    both = {"rope_type": "default", **(scaling or {}), "rope_theta": theta}
    config = LlamaConfig(
        head_dim=head_dim,
        rope_theta=theta,
        max_position_embeddings=131072,
        rope_parameters=both,
        rope_scaling=both if scaling else None,
    )
    if scaling is None:
        theirs, factor = LlamaRotaryEmbedding(config).inv_freq, 1.0
    else:
        theirs, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    ours, our_factor = inverse_frequencies(head_dim, theta, scaling, 131072)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert our_factor == pytest.approx(factor)


def test_unknown_kind_and_missing_field():
    with pytest.raises(UnsupportedModelError, match="longrope"):
        inverse_frequencies(64, 1e4, {"rope_type": "longrope"}, 4096)
    with pytest.raises(ModelError, match="low_freq_factor"):
        inverse_frequencies(
            64, 1e4, {key: LLAMA3[key] for key in LLAMA3 if key != "low_freq_factor"}, 4096
        )
    with pytest.raises(UnsupportedModelError, match="partial_rotary_factor"):
        inverse_frequencies(64, 1e4, {**YARN, "partial_rotary_factor": 0.5}, 4096)
