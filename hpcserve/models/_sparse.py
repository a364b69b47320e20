"""What models with mixtures of experts share: the names of their experts' tensors."""

from __future__ import annotations

from typing import ClassVar

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import ExpertParallel, PipelineStage, TensorParallel
from hpcserve.errors import ModelError
from hpcserve.layers.moe import packed_experts
from hpcserve.models.llama import LlamaForCausalLM


class SparseCausalLM(LlamaForCausalLM):
    """expert_names: gate, up and down projection of an expert, as the checkpoint calls them."""

    expert_names: ClassVar[tuple[str, str, str]] = ("gate_proj", "up_proj", "down_proj")

    def __init__(
        self,
        checkpoint: CheckpointConfig,
        tp: TensorParallel,
        context_length: int,
        *,
        stage: PipelineStage = PipelineStage(),
        experts: ExpertParallel = ExpertParallel(),
    ) -> None:
        super().__init__(checkpoint, tp, context_length, stage=stage, experts=experts)
        self._num_experts = number_of(checkpoint, "num_local_experts", "num_experts")
        self._held = experts.experts(self._num_experts)
        packed = packed_experts(self._num_experts, self.expert_names)
        self.packed_modules = {**self.packed_modules, **packed}

    def is_ignored(self, tensor_name: str) -> bool:
        return super().is_ignored(tensor_name) or self._is_of_other_rank(tensor_name)

    def _is_of_other_rank(self, tensor_name: str) -> bool:
        """Whether it is an expert that another rank holds."""
        _, found, rest = tensor_name.partition(".experts.")
        number, _, part = rest.partition(".")
        if (
            not found
            or not number.isdigit()
            or part.removesuffix(".weight") not in self.expert_names
        ):
            return False
        return int(number) < self._num_experts and int(number) not in self._held


def number_of(checkpoint: CheckpointConfig, *names: str) -> int:
    """A whole number of config.json, which releases of transformers name differently.

    Raises ModelError where there is none.
    """
    for name in names:
        if name in checkpoint.raw:
            return int(checkpoint.raw[name])
    raise ModelError(f"{checkpoint.path / 'config.json'} has no field {names[0]!r}")
