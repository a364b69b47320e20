from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.distributed.parallel_state import TensorParallel
from hpcserve.errors import ModelNotFoundError, WeightsError
from hpcserve.models.llama import LlamaForCausalLM
from hpcserve.testing import make_random_checkpoint
from hpcserve.weights.loader import load_weights
from hpcserve.weights.sources import resolve_model, weight_files

DOWN = "model.layers.1.mlp.down_proj.weight"
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_random_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def folder(made, tmp_path) -> Path:
    for file in made.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _load(folder: Path, files: list[Path] | None = None) -> LlamaForCausalLM:
    model = LlamaForCausalLM(CheckpointConfig.load(folder), TensorParallel(), 64)
    load_weights(model, files or weight_files(folder))
    return model


def _change(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def test_fused_weights_are_the_parts_one_after_the_other(folder):
    params = dict(_load(folder).named_parameters())
    tensors = load_file(folder / "model.safetensors")
    prefix = "model.layers.0.self_attn."
    whole = torch.cat([tensors[f"{prefix}{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(params[prefix + "qkv_proj.weight"], whole)


def test_missing_tensor_is_named(folder):
    file = _change(folder, lambda tensors: tensors.pop(Q))
    with pytest.raises(WeightsError) as caught:
        _load(folder)
    assert Q in str(caught.value) and str(file) in str(caught.value)


def test_left_over_tensor_is_named(folder):
    extra = "model.layers.0.self_attn.q_proj.bias"
    file = _change(folder, lambda tensors: tensors.update({extra: torch.zeros(96)}))
    with pytest.raises(WeightsError, match="left over") as caught:
        _load(folder)
    assert extra in str(caught.value) and str(file) in str(caught.value)


def test_wrong_shape_is_named_with_both_shapes(folder):
    file = _change(folder, lambda tensors: tensors.update({DOWN: torch.zeros(48, 81)}))
    with pytest.raises(WeightsError, match=r"\[48, 81\].*\[48, 80\]") as caught:
        _load(folder)
    assert DOWN in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize("kept", [0, 5, 200, -100])
def test_truncated_file_is_named(folder, kept):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="corrupt or cut off") as caught:
        _load(folder)
    assert str(file) in str(caught.value)


def test_tensor_in_two_files(folder):
    again = folder / "again.safetensors"
    save_file({DOWN: torch.zeros(48, 80)}, again)
    with pytest.raises(WeightsError, match=r"is in model\.safetensors as well"):
        _load(folder, [folder / "model.safetensors", again])


def test_old_rotary_buffers_are_ignored(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _change(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    _load(folder)


@pytest.mark.parametrize("carries_head", [False, True])
def test_tied_head_may_be_there_or_not(tmp_path, carries_head):
    make_random_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    if carries_head:
        _change(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(131, 48)}))
    model = _load(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, torch.ones(131, 48))


def test_untied_head_must_be_there(folder):
    _change(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        _load(folder)


def test_sharded_checkpoint_equals_the_single_file(made, tmp_path):
    make_random_checkpoint(tmp_path, "llama", max_shard_size="40KB")
    assert len(weight_files(tmp_path)) > 2
    one, several = _load(made).state_dict(), _load(tmp_path).state_dict()
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_index_that_names_an_absent_file(tmp_path):
    make_random_checkpoint(tmp_path, "llama", max_shard_size="40KB")
    gone = weight_files(tmp_path)[1]
    gone.unlink()
    with pytest.raises(WeightsError, match=gone.name):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"weight_map": 3}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        json.dumps({"metadata": {}}),
    ],
)
def test_broken_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match="no index"):
        weight_files(tmp_path)


def test_folder_without_safetensors(tmp_path):
    with pytest.raises(WeightsError, match="holds no"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="safe_serialization"):
        weight_files(tmp_path)


def test_resolve_model(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(ModelNotFoundError, match="no model is named"):
        resolve_model("")
    with pytest.raises(ModelNotFoundError, match="no model folder"):
        resolve_model(str(tmp_path / "absent"))
    with pytest.raises(ModelNotFoundError, match="hf download org/absent"):
        resolve_model("org/absent")
