import pytest

from hpcserve.errors import InvalidParameterError, RequestError
from hpcserve.protocol.body import parse_body, sampling_params
from hpcserve.protocol.generate import GenerateBody
from hpcserve.protocol.openai import ChatBody, CompletionBody
from hpcserve.sampling_params import SamplingParams

USER = [{"role": "user", "content": "hi"}]


def test_fields_reach_the_sampling_params():
    given = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "frequency_penalty": 0.25,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.5,
        "max_tokens": 7,
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "n": 2,
        "seed": 9,
    }
    more = {"logit_bias": {"3": 1.5}, "stop": "x", "stop_token_ids": [4], "no_stop_trim": True}
    params = sampling_params(parse_body(ChatBody, {"messages": USER, **given, **more}), {})
    expected = SamplingParams(
        **given,
        logit_bias={3: 1.5},
        stop=("x",),
        stop_token_ids=(4,),
        include_stop_str_in_output=True,
    )
    assert params == expected


def test_nulls_are_defaults():
    body = parse_body(ChatBody, {"messages": USER, "temperature": None, "stop": None, "n": None})
    assert sampling_params(body, {}) == SamplingParams()
    assert sampling_params(body, {"temperature": 0.5}) == SamplingParams(temperature=0.5)


def test_unknown_fields_are_tolerated_but_not_known_unsupported_ones():
    parse_body(ChatBody, {"messages": USER, "my_label": 1, "store": True, "suffix": None})
    for name, value in {
        "audio": {"voice": "x"},
        "functions": [{"name": "f"}],
        "use_beam_search": True,
    }.items():
        with pytest.raises(InvalidParameterError, match=f"^{name}: ") as caught:
            parse_body(ChatBody, {"messages": USER, name: value})
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("messages", [], "messages"),
        ("messages", [{"content": "x"}], "messages"),
        ("messages", "hi", "messages"),
        ("temperature", "warm", "temperature"),
        ("n", 1.5, "n"),
        ("stop", [1], "stop"),
        ("response_format", "json", "response_format"),
        ("tool_choice", "required", "tool_choice"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}, "tool_choice"),
        ("modalities", ["text", "audio"], "modalities"),
        ("top_logprobs", 2, "top_logprobs"),
        ("continue_final_message", True, "continue_final_message"),
        ("priority", 2**31, "priority"),
        ("truncate_prompt_tokens", 5, "truncate_prompt_tokens"),
        ("echo", True, "echo"),
        ("chat_template", "{{ x }}", "chat_template"),
    ],
)
def test_errors_name_the_field(field, value, param):
    with pytest.raises(InvalidParameterError) as caught:
        parse_body(ChatBody, {"messages": USER, field: value}).check()
    assert caught.value.param == param


def test_echo_is_a_field_of_completions():
    parse_body(CompletionBody, {"prompt": "a", "echo": True}).check()


def test_broken_json():
    with pytest.raises(RequestError, match="no valid JSON"):
        parse_body(ChatBody, b'{"messages": [')
    with pytest.raises(InvalidParameterError, match="body"):
        parse_body(ChatBody, b"[]")


def test_kinds_of_prompts():
    def prompts(value):
        return parse_body(CompletionBody, {"prompt": value}).prompts()

    assert prompts("a") == ["a"]
    assert prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [[1, 2]]
    assert prompts([[1], [2, 3]]) == [[1], [2, 3]]
    for bad in ({"prompt": []}, {"prompt": "a", "best_of": 2}):
        with pytest.raises(InvalidParameterError):
            parse_body(CompletionBody, bad).check()
    parse_body(CompletionBody, {"prompt": "a", "best_of": 2, "n": 2}).check()


def test_a_chat_refuses_best_of_other_than_n():
    turns = {"messages": [{"role": "user", "content": "a"}]}
    with pytest.raises(InvalidParameterError, match="best_of"):
        parse_body(ChatBody, {**turns, "best_of": 2}).check()
    parse_body(ChatBody, {**turns, "best_of": 1}).check()


def test_native_fields():
    body = parse_body(
        GenerateBody,
        {
            "text": ["a", "b"],
            "sampling_params": [{"max_new_tokens": 3, "stop": ["x"]}, {"sampling_seed": 5}],
            "return_logprob": [True, False],
            "logprob_start_len": 0,
            "top_logprobs_num": 2,
        },
    )
    one, two = body.params_of_each(2)
    assert one == SamplingParams(max_tokens=3, stop=("x",), logprobs=2, prompt_logprobs=2)
    assert two == SamplingParams(max_tokens=128, seed=5)
    with pytest.raises(InvalidParameterError, match="2 values for 3"):
        body.params_of_each(3)


def test_nulls_of_the_native_api_are_defaults():
    names = ("temperature", "top_p", "top_k", "stop", "ignore_eos", "n", "min_new_tokens")
    nulls = {"sampling_params": dict.fromkeys(names), "stream": None, "return_logprob": None}
    body = parse_body(GenerateBody, {"text": "a", "return_text_in_logprobs": None, **nulls})
    assert body.params_of_each(1) == [SamplingParams(max_tokens=128)]
    assert not body.stream
    body = parse_body(GenerateBody, {"text": "a", "sampling_params": {"max_new_tokens": None}})
    assert body.params_of_each(1) == [SamplingParams()]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({}, "either text or input_ids"),
        ({"text": "a", "input_ids": [1]}, "either text or input_ids"),
        ({"text": ""}, "empty"),
        ({"input_ids": []}, "empty"),
        ({"text": "a", "sampling_params": {"max_tokens": 3}}, "'max_tokens'"),
        ({"text": "a", "sampling_params": {"regex": "a", "ebnf": "b"}}, "regex"),
        ({"text": "a", "image_data": "x.png"}, "image_data"),
        ({"text": "a", "audio_data": "x.wav"}, "audio_data"),
        ({"text": "a", "priority": 2**70}, "priority"),
    ],
)
def test_native_errors(body, text):
    with pytest.raises(InvalidParameterError, match=text):
        found = parse_body(GenerateBody, body)
        found.params_of_each(len(found.prompts()))


@pytest.mark.parametrize(
    "tool", [{}, {"function": "f"}, {"function": {}}, {"function": {"name": 1}}]
)
def test_a_tool_without_a_function_is_refused(tool):
    body = parse_body(ChatBody, {"messages": USER, "tools": [tool]})
    with pytest.raises(InvalidParameterError, match="tools: every tool needs a function"):
        body.check()


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -0.5])
def test_a_temperature_is_a_finite_number(value):
    with pytest.raises(InvalidParameterError, match=r"temperature: .* no finite number"):
        SamplingParams(temperature=value).validate()
