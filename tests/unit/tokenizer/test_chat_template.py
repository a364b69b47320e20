import json
from datetime import datetime

import pytest

from hpcserve.errors import InputError, InvalidParameterError, TokenizerError
from hpcserve.tokenizer.chat_template import ChatTemplate, find_templates

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "é <b> & 'x'"}}]
USER = [{"role": "user", "content": "hi"}]


def render(template, messages=USER, **variables):
    return ChatTemplate({"default": template}, {"bos_token": "<s>"}).render(messages, **variables)


def test_chatml_and_generation_prompt():
    assert render(CHATML) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"
    assert render(CHATML, enable_thinking=False).endswith("<think></think>")


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        "{{ bos_token }}{{ tools | tojson }}{{ tools | tojson(indent=2) }}",
        "  {% for m in messages %}\n  {{ m.content }}\n  {% if loop.first %}{% continue %}{% endif %}"
        "\n{% endfor %}\n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{% generation %}{{ messages[0].content | trim }}{% endgeneration %}",
        "{{ strftime_now('%Y') }}{{ messages[-1]['role'] | upper }}{{ custom }}",
    ],
)
def test_equals_transformers(template):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>")
    messages = [*USER, {"role": "assistant", "content": " ja <&> "}, *USER]
    expected = theirs.apply_chat_template(
        messages,
        tools=TOOLS,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        custom="own",
    )
    ours = render(template, messages, tools=TOOLS, custom="own")
    assert ours == expected
    assert datetime.now().strftime("%Y") in ours or "strftime" not in template


def test_parts_are_joined_and_other_kinds_named():
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert "a\nb" in render(CHATML, [{"role": "user", "content": content}])
    with pytest.raises(InvalidParameterError, match="image_url"):
        render(CHATML, [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    with pytest.raises(InvalidParameterError, match="content is text or a list of parts, no int"):
        render(CHATML, [{"role": "user", "content": 5}])


def test_tool_call_arguments_become_objects():
    template = (
        "{{ messages[0].tool_calls[0].function.arguments | tojson }}{{ messages[0].content }}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert render(template, messages) == '{"x": 1}'
    assert call["function"]["arguments"] == '{"x": 1}'
    call["function"]["arguments"] = "[" * 100_000
    with pytest.raises(InvalidParameterError, match="arguments of tool call 'f'"):
        render(template, messages)
    call["function"]["arguments"] = "{"
    with pytest.raises(InvalidParameterError, match="'f'"):
        render(template, messages)


def test_refusals_name_their_reason():
    with pytest.raises(InvalidParameterError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidParameterError, match="--chat-template"):
        ChatTemplate({}, {}).render(USER)
    with pytest.raises(TokenizerError, match="line 1"):
        ChatTemplate({"default": "{% if %}"}, {})


def test_the_sandbox_holds():
    with pytest.raises(InvalidParameterError):
        render("{{ messages.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidParameterError):
        render("{{ messages.append(1) }}")


def test_named_templates_are_chosen_by_tools():
    both = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert both.render(USER) == "plain"
    assert both.render(USER, tools=TOOLS) == "tools"
    assert ChatTemplate({"rag": "only"}, {}).render(USER) == "only"


def test_where_templates_are_found(tmp_path):
    assert find_templates(tmp_path, {}) == {}
    assert find_templates(tmp_path, {"chat_template": "a"}) == {"default": "a"}
    named = [{"name": "default", "template": "b"}]
    assert find_templates(tmp_path, json.loads(json.dumps({"chat_template": named}))) == {
        "default": "b"
    }
    (tmp_path / "chat_template.jinja").write_text("c")
    assert find_templates(tmp_path, {"chat_template": "a"}) == {"default": "c"}
    own = tmp_path / "own.jinja"
    own.write_text("d")
    assert find_templates(tmp_path, {}, replacement=own) == {"default": "d"}
    with pytest.raises(InputError, match=r"gone\.jinja"):
        find_templates(tmp_path, {}, replacement=tmp_path / "gone.jinja")


def test_variables_may_have_any_name():
    assert render("{{ self_ }}{{ context }}", self_=1, context=2) == "12"
    template = ChatTemplate({"default": CHATML}, {})
    assert template.render(USER, self=1, messages=2) == render(CHATML)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": 5},
        {"role": "user", "content": {"type": "text", "text": "x"}},
        {"role": "assistant", "content": "x", "tool_calls": 5},
        {"role": "assistant", "content": "x", "tool_calls": "f()"},
    ],
)
def test_messages_of_another_shape_are_refused(message):
    with pytest.raises(InvalidParameterError, match=r"^messages: "):
        render(CHATML, [message])


@pytest.mark.parametrize("expression", ["1 // 0", "messages.pop(7)"])
def test_whatever_a_template_raises_is_a_refusal(expression):
    with pytest.raises(InvalidParameterError, match="refuses them"):
        render("{{ " + expression + " | list }}")


def test_named_templates_that_transformers_saves_are_found(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    theirs.chat_template = {"default": "plain", "tool_use": "with tools"}
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = ChatTemplate(find_templates(tmp_path, config), {})
    assert (template.render(USER), template.render(USER, tools=TOOLS)) == ("plain", "with tools")
