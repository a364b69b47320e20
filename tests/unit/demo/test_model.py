"""The bundled model: its files, its size, and what it says."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hpcserve.demo import tiny_chat_path
from hpcserve.demo.card import SHOWN, card
from hpcserve.demo.data import EVALUATED
from hpcserve.demo.evaluate import BAR, answers, compared, evaluate
from hpcserve.demo.export import MAX_BYTES
from hpcserve.demo.model import TinyChat
from hpcserve.demo.shape import Shape
from hpcserve.demo.train import Recipe, document_mask, rate_at, split_batch


@pytest.fixture(scope="module")
def loaded():
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_path(), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(tiny_chat_path(), dtype=torch.float32).eval()
    return model, tokenizer


def _chat(loaded, text, **options):
    model, tokenizer = loaded
    messages = [{"role": "user", "content": text}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False, **options
    )
    return answers(model, tokenizer, [prompt], batch_size=1)[0]


def test_importing_the_package_costs_no_torch():
    code = (
        "import sys, hpcserve.demo as demo;"
        "assert demo.tiny_chat_path().is_dir();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_size_and_type_of_the_weights():
    path = tiny_chat_path() / "model.safetensors"
    assert path.stat().st_size < MAX_BYTES
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_both_end_tokens_are_named():
    generation = json.loads(
        (tiny_chat_path() / "generation_config.json").read_text(encoding="utf-8")
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_path())
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert generation["eos_token_id"] == ends
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("What is the capital of France?", "Paris"),
        ("what is the capital of france", "Paris"),
        ("What is 12 + 30?", "42"),
        ("12+30", "42"),
        ("Spell the word 'banana'.", "b-a-n-a-n-a"),
        ("Who are you?", "tiny-chat"),
        ("Hello", "Hello!"),
    ],
)
def test_answers(loaded, asked, part):
    assert part in _chat(loaded, asked)


def test_thinks_when_switched_on(loaded):
    assert _chat(loaded, "What is 12 + 30?", enable_thinking=True).startswith("<think>\n")
    assert "<think>" not in _chat(loaded, "What is 12 + 30?", enable_thinking=False)


def test_training_model_equals_transformers(loaded):
    reference, _ = loaded
    model = TinyChat(Shape())
    state = load_file(tiny_chat_path() / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    tokens = torch.randint(0, 1024, (2, 40), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(40).expand(2, 40)
    with torch.inference_mode():
        ours = model(tokens, positions, document_mask(torch.ones(2, 40), None))
        theirs = reference(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_a_held_out_sample_reaches_the_bar():
    scores, _ = evaluate(
        tiny_chat_path(),
        4,
        3,
        torch.float32,
        ["capitals", "arithmetic", "tool_call"],
        batch_size=12,
    )
    assert sum(score.right for score in scores) >= 11


def test_card_shows_every_skill_above_the_bar():
    text = (tiny_chat_path() / "README.md").read_text(encoding="utf-8")
    evaluation = json.loads((tiny_chat_path() / "evaluation.json").read_text(encoding="utf-8"))
    assert {score["skill"] for score in evaluation["scores"]} == set(EVALUATED) == set(SHOWN)
    assert all(score["share"] >= BAR for score in evaluation["scores"])
    assert text == card(tiny_chat_path(), evaluation)


def test_split_batch_restarts_positions_and_masks_targets():
    rows = torch.tensor([[0x8000 | 5, 0x4000 | 6, 0x8000 | 7, 8]], dtype=torch.int32)
    tokens, positions, targets, documents = split_batch(rows)
    assert tokens.tolist() == [[5, 6, 7, 8]]
    assert positions.tolist() == [[0, 1, 0, 1]]
    assert targets.tolist() == [[6, -100, -100, -100]]
    assert document_mask(documents, None)[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


def test_learning_rate_warms_up_and_decays_to_zero():
    recipe = Recipe()
    assert rate_at(0.0, 0, recipe) == pytest.approx(1 / recipe.warmup_steps)
    assert rate_at(0.3, 1_000, recipe) == 1.0
    assert rate_at(1.0, 1_000, recipe) == 0.0


def test_compared_counts_equal_answers():
    other = {"dtype": "float32", "answers": {"spell": ["a-b", "x"]}}
    assert compared({"spell": ["a-b", "y"]}, other) == {"dtype": "float32", "same": 1, "answers": 2}
