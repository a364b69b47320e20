"""The tokenizer and the chat template of the bundled model."""

import itertools
import json

import jinja2.sandbox
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from hpcserve.demo import tiny_chat_path
from hpcserve.demo.data import training_stream
from hpcserve.demo.packing import START, TOKEN_MASK, TRAINED, encode, pack
from hpcserve.demo.render import chat_template, prompt, render

TOKENIZER = Tokenizer.from_file(str(tiny_chat_path() / "tokenizer.json"))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def template():
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(
        (tiny_chat_path() / "chat_template.jinja").read_text(encoding="utf-8")
    )


def _ask(template, *messages, **options):
    return template.render(messages=list(messages), add_generation_prompt=True, **options)


def _user(text):
    return {"role": "user", "content": text}


@given(st.text())
@settings(max_examples=80, deadline=None)
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["😀🎉", "你好，世界", "a\u0301 e\u0301", "\r\n\t ", "नमस्ते", "<|im_end|> <think>"]
)
def test_difficult_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens():
    assert TOKENIZER.encode("1234").tokens == ["1", "2", "3", "4"]


def test_markers_are_single_tokens_and_only_chatml_is_special():
    for text in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        ids = TOKENIZER.encode(text).ids
        assert len(ids) == 1
        assert TOKENIZER.decode(ids) == ""
    for text in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
        ids = TOKENIZER.encode(text).ids
        assert len(ids) == 1
        assert TOKENIZER.decode(ids) == text


def test_bundled_template_is_the_one_in_the_package():
    folder = tiny_chat_path()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["chat_template"] == chat_template()
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == chat_template()


def test_training_text_is_what_the_template_gives(template):
    for one in itertools.islice(training_stream(6), 300):
        if one.raw:
            continue
        messages = [{"role": m.role, "content": m.content} for m in one.messages[:-1]]
        options = {} if one.thinking is None else {"enable_thinking": one.thinking}
        assert _ask(template, *messages, tools=list(one.tools) or None, **options) == prompt(one)


def test_one_user_message(template):
    expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert _ask(template, _user("Hi")) == expected
    assert _ask(template, _user([{"type": "text", "text": "Hi"}])) == expected


def test_thinking_switch(template):
    assert "Hi /think<|im_end|>" in _ask(template, _user("Hi"), enable_thinking=True)
    assert _ask(template, _user("Hi /think"), enable_thinking=True).count("/think") == 1
    assert _ask(template, _user("Hi"), enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert "think" not in _ask(template, _user("Hi"), enable_thinking=None)


def test_tools_are_listed_with_the_system_message(template):
    text = _ask(template, {"role": "system", "content": "Be kind."}, _user("Hi"), tools=[WEATHER])
    assert text.startswith("<|im_start|>system\nBe kind.\n\n# Tools")
    assert json.dumps(WEATHER) in text
    assert text.count("<|im_start|>system") == 1


@pytest.mark.parametrize("arguments", [{"city": "Paris"}, '{"city": "Paris"}'])
def test_calls_and_responses_are_rendered_back(template, arguments):
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }
    text = _ask(
        template,
        _user("Weather in Paris?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        tools=[WEATHER],
    )
    expected = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert f"<|im_start|>assistant\n{expected}<|im_end|>\n" in text
    assert "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n" in text


def test_old_thoughts_are_dropped(template):
    old = {"role": "assistant", "content": "<think>\nlong\n</think>\n\n42"}
    text = _ask(template, _user("6 x 7"), old, _user("And 6 x 8?"))
    assert "long" not in text
    assert "<|im_start|>assistant\n42<|im_end|>" in text


def test_segments_encode_like_the_whole_text():
    for one in itertools.islice(training_stream(8), 200):
        segments = render(one)
        whole = TOKENIZER.encode("".join(segment.text for segment in segments)).ids
        assert whole == [
            token for segment in segments for token in TOKENIZER.encode(segment.text).ids
        ]


def test_rows_hold_whole_conversations_with_their_marks():
    rows = pack(TOKENIZER, training_stream(1), length=512, rows=4)
    assert rows.shape == (4, 512)
    assert all(row[0] & START for row in rows)
    one = next(training_stream(1))
    (encoded,) = encode(TOKENIZER, [one])
    trained = [int(entry) & TOKEN_MASK for entry in encoded if entry & TRAINED]
    expected = "".join(segment.text for segment in render(one) if segment.trained)
    assert TOKENIZER.decode(trained, skip_special_tokens=False) == expected
