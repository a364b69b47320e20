"""What tests of hpcserve, and of what is built on it, need: tiny models and fakes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from hpcserve.ipc.messages import ModelRunnerOutput, NewRequest, SchedulerOutput
from hpcserve.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch
    from torch import nn

    from hpcserve.engine.model_runner import ModelRunner
    from hpcserve.layers.parameter import WeightParameter

# ---------------------------------------------------------------- random checkpoints

#: A decoder small enough that a test may make, save and load several a second.
TINY_CONFIG: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}

#: Of mixtures of experts besides.
SPARSE_CONFIG: dict[str, Any] = {
    "num_experts": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
}


def make_random_checkpoint(
    folder: Path, model_type: str, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any
) -> Path:
    """Write a checkpoint of `model_type` with random float32 weights to `folder`; returns it.

    overrides: fields of its config.json, over TINY_CONFIG and SPARSE_CONFIG. max_shard_size:
    smaller ones split the weights over several files with an index. The weights are spread widely
    enough for greedy outputs to differ from token to token; biases and norms are random as well.
    It has no tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sparse = (
        SPARSE_CONFIG if hasattr(AutoConfig.for_model(model_type), "num_experts_per_tok") else {}
    )
    config = AutoConfig.for_model(model_type, **{**TINY_CONFIG, **sparse, **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if "norm" in name:
                    param.uniform_(0.5, 1.5)
                else:
                    param.normal_(0.0, 0.15)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def fill_by_name(layer: nn.Module) -> None:
    """Load weights that depend on their names alone, so that each rank has its part of the same."""
    import torch

    for name, param in layer.named_parameters():
        loadable = cast("WeightParameter", param)
        for shard_id, shape in loadable.full_shapes.items():
            seed = zlib.crc32(f"{name} {shard_id}".encode())
            whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4
            loadable.weight_loader(loadable, whole, shard_id)


# ---------------------------------------------------------------- hand-made steps

_GREEDY = SamplingParams(temperature=0.0)


class StepDriver:
    """Hand-made steps for a ModelRunner: what a scheduler would send, written out.

    It gives out pages in a scrambled order and sends page-table deltas as rows grow."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        rng = np.random.default_rng(11)
        self._free = rng.permutation(runner.pool.num_pages).astype(np.int32).tolist()
        self._pages: dict[int, list[int]] = {}
        self._known: dict[int, int] = {}
        self._new: list[NewRequest] = []
        self._released: list[int] = []
        self._step_id = 0

    def pages_of(self, slot: int) -> list[int]:
        return self._pages[slot]

    def admit(
        self,
        slot: int,
        token_ids: Sequence[int],
        *,
        shared_pages: Sequence[int] = (),
        params: SamplingParams = _GREEDY,
        num_prompt_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        """A request enters `slot` with the next step."""
        self._pages[slot] = list(shared_pages)
        self._known[slot] = len(token_ids)
        self._new.append(
            NewRequest(
                slot=slot,
                token_ids=np.array(token_ids, dtype=np.int32),
                num_prompt_tokens=len(token_ids)
                if num_prompt_tokens is None
                else num_prompt_tokens,
                page_ids=np.array(shared_pages, dtype=np.int32),
                params=params,
                seed=seed,
            )
        )

    def release(self, slot: int) -> None:
        """The request leaves `slot` with the next step; its pages may be given out again."""
        self._released.append(slot)
        self._free = self._pages.pop(slot) + self._free

    def step(self, rows: Sequence[tuple[int, int, int]], num_decodes: int = 0) -> SchedulerOutput:
        """The step of `rows`, each (slot, number computed, number scheduled)."""
        page_size = self.runner.pool.page_size
        new_pages: list[tuple[int, int, int]] = []
        samples = []
        for slot, computed, scheduled in rows:
            held = self._pages[slot]
            while len(held) * page_size < computed + scheduled:
                new_pages.append((slot, len(held), self._free.pop()))
                held.append(new_pages[-1][2])
            samples.append(int(computed + scheduled >= self._known[slot]))
            if samples[-1]:
                self._known[slot] = computed + scheduled + 1
        columns = np.array(rows, dtype=np.int32).reshape(-1, 3).T.copy()
        pages = np.array(new_pages, dtype=np.int32).reshape(-1, 3).T.copy()
        self._step_id += 1
        step = SchedulerOutput(
            step_id=self._step_id,
            slots=columns[0],
            num_computed=columns[1],
            num_scheduled=columns[2],
            samples=np.array(samples, dtype=np.int32),
            num_decodes=num_decodes,
            released_slots=self._released,
            new_requests=self._new,
            new_page_slots=pages[0],
            new_page_indices=pages[1],
            new_page_ids=pages[2],
        )
        self._new, self._released = [], []
        return step

    def submit(
        self, rows: Sequence[tuple[int, int, int]], num_decodes: int = 0
    ) -> ModelRunnerOutput:
        return self.runner.submit(self.step(rows, num_decodes)).result()

    def logits(
        self, rows: Sequence[tuple[int, int, int]], num_decodes: int = 0
    ) -> list[torch.Tensor]:
        """Logits at every token of every row; nothing is sampled."""
        import torch

        with torch.inference_mode():
            step = self.step(rows, num_decodes)
            self.runner.apply(step)
            inputs = self.runner.batch.prepare(step)
            if inputs is None:
                return []
            logits = self.runner.model.compute_logits(self.runner.forward(inputs))
        return list(logits.split([scheduled for _, _, scheduled in rows]))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        num_tokens: int,
        params: Sequence[SamplingParams] | None = None,
    ) -> list[list[int]]:
        """Prefill all, then decode all, a token a step; prompt i in slot i with seed i."""
        for slot, ids in enumerate(prompts):
            self.admit(slot, ids, params=params[slot] if params else _GREEDY, seed=slot)
        lengths = [len(ids) for ids in prompts]
        first = self.submit([(slot, 0, length) for slot, length in enumerate(lengths)])
        texts = [[int(token)] for token in first.sampled_token_ids]
        for done in range(num_tokens - 1):
            rows = [(slot, length + done, 1) for slot, length in enumerate(lengths)]
            output = self.submit(rows, num_decodes=len(rows))
            for text, token in zip(texts, output.sampled_token_ids, strict=True):
                text.append(int(token))
        return texts
