"""Sampling defaults out of generation_config.json."""

from __future__ import annotations

import json

import pytest

from hpcserve.config.checkpoint import CheckpointConfig
from hpcserve.config.generation import sampling_defaults
from hpcserve.config.model import ModelConfig
from hpcserve.demo import tiny_chat_path
from hpcserve.errors import ConfigError, ModelError

LLAMA = {
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128001, 128008, 128009],
    "temperature": 0.6,
    "top_p": 0.9,
    "max_length": 4096,
    "max_new_tokens": 512,
    "transformers_version": "4.42.3",
}


@pytest.fixture
def folder(tmp_path):
    def make(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "generation_config.json").write_text(text)
        return str(tmp_path)

    return make


def defaults(model, chosen="auto"):
    return sampling_defaults(ModelConfig(model=model, generation_config=chosen))


@pytest.mark.parametrize("chosen", ["auto", "model"])
def test_the_models_file_is_taken(folder, chosen):
    assert defaults(folder(LLAMA), chosen) == {"temperature": 0.6, "top_p": 0.9}


@pytest.mark.parametrize("chosen", ["none", "openai", "vllm"])
def test_or_left(folder, chosen):
    assert defaults(folder(LLAMA), chosen) == {}


def test_another_folder(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("model")
    full = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05, "top_p": None}
    assert defaults(str(empty), folder(full)) == {
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.05,
    }
    with pytest.raises(ConfigError, match=r"no .*generation_config\.json; give a folder"):
        defaults(folder(full), str(empty))


def test_no_file_sets_nothing(tmp_path):
    assert defaults(str(tmp_path)) == {}
    assert defaults("") == {}


def test_no_sampling_is_greedy_unless_there_is_a_temperature(folder):
    assert defaults(folder({"do_sample": False})) == {"temperature": 0.0}
    assert defaults(folder({"do_sample": False, "temperature": 0.7})) == {"temperature": 0.7}
    assert defaults(folder({"top_p": 0.5})) == {"top_p": 0.5}
    assert defaults(str(tiny_chat_path())) == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read"),
        ("[]", "no JSON object"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": True}, "top_p is True"),
        ({"top_p": 3}, "top_p.*--generation-config none"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(folder, content, words):
    with pytest.raises(ModelError, match=words) as caught:
        defaults(folder(content))
    assert "generation_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_of_its_eos_tokens_end_an_answer(folder, tmp_path):
    config = json.loads((tiny_chat_path() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    assert CheckpointConfig.load(tmp_path).eos_token_ids == (7,)
    folder(LLAMA)
    assert CheckpointConfig.load(tmp_path).eos_token_ids == (128001, 128008, 128009)
    folder({"eos_token_id": 9})
    assert CheckpointConfig.load(tmp_path).eos_token_ids == (9,)
    folder({"temperature": 1.0})
    assert CheckpointConfig.load(tmp_path).eos_token_ids == (7,)
