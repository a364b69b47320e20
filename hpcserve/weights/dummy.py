"""Random weights for trying a model's shape without its files (`--load-format dummy`)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from hpcserve.weights.loader import LoadableModel, expected_tensors

#: Bounds of the uniform distribution, the same as in vLLM's and SGLang's dummy weights.
LOW, HIGH = -1e-3, 1e-3


def fill_dummy_weights(model: LoadableModel, seed: int) -> None:
    """Fill every parameter with uniform(-1e-3, 1e-3).

    Each tensor of the checkpoint that the parameters stand for has its own generator, seeded by
    its name, and is made whole before this rank takes its part: neither the order nor the number
    of ranks changes a value. (Devices differ: each has its own generator.)
    """
    params = dict(model.named_parameters())
    for name, (param_name, shard_id) in expected_tensors(params, model.packed_modules).items():
        param = params[param_name]
        param.weight_loader(param, _whole(param, shard_id, name, seed), shard_id)


def _whole(param: Any, shard_id: Any, name: str, seed: int) -> torch.Tensor:
    generator = torch.Generator(param.device).manual_seed(_seed_of(name, seed))
    whole = torch.empty(param.full_shapes[shard_id], dtype=param.dtype, device=param.device)
    return whole.uniform_(LOW, HIGH, generator=generator)


def _seed_of(name: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
