import os
import signal
import threading

import pytest

from hpcserve import LLM, SamplingParams
from hpcserve.errors import (
    ConfigError,
    EngineDeadError,
    InvalidParameterError,
    ModelNotFoundError,
    UsageError,
)
from hpcserve.fake_engine import write_byte_tokenizer

FAKE = "hpcserve.fake_engine"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = write_byte_tokenizer(tmp_path_factory.mktemp("model"))
    with LLM(str(folder), core_module=FAKE, max_model_len=128) as found:
        yield found


def test_order_and_prompts(llm):
    outputs = llm.generate(["one", "zwölf", [65, 66]])
    assert [o.outputs[0].text for o in outputs] == ["one", "zwölf", "AB"]
    assert [o.prompt for o in outputs] == ["one", "zwölf", None]
    assert llm.generate("x")[0].outputs[0].text == "x"
    assert llm.generate([65, 66])[0].outputs[0].text == "AB"
    assert llm.generate([]) == llm.chat([]) == []


def test_params_for_all_or_for_each(llm):
    short, long = SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)
    texts = [o.outputs[0].text for o in llm.generate(["abc", "abc"], [short, long])]
    assert texts == ["a", "ab"]
    with pytest.raises(UsageError, match="1 sampling params for 2 prompts"):
        llm.generate(["a", "b"], [short])


def test_chat(llm):
    conversation = [{"role": "user", "content": "hi"}]
    [output] = llm.chat(conversation)
    assert output.outputs[0].text == "user\nhi\nassistant\n"
    assert len(llm.chat([conversation, conversation])) == 2
    [output] = llm.chat(conversation, chat_template_kwargs={"enable_thinking": False})
    assert "<think>" in output.outputs[0].text


def test_a_bad_prompt_stops_all_before_they_start(llm):
    before = llm.stats().prompt_tokens_total
    with pytest.raises(InvalidParameterError, match="empty"):
        llm.generate(["good", ""])
    assert llm.stats().prompt_tokens_total == before


def test_progress_goes_to_stderr(llm, capsys):
    llm.generate(["abc"], progress=True)
    assert capsys.readouterr().out == ""


def test_closing(tmp_path):
    llm = LLM(str(write_byte_tokenizer(tmp_path)), core_module=FAKE)
    llm.flush_cache()
    llm.close()
    llm.close()
    with pytest.raises(UsageError, match="closed"):
        llm.stats()


def test_what_cannot_start(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        LLM(str(tmp_path / "nowhere"))
    with pytest.raises(ModelNotFoundError, match="hf download"):
        LLM("nobody/has-this-one")
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(str(tmp_path), max_modle_len=3)


def test_a_core_that_is_killed_is_an_error_for_whoever_waits_and_whoever_comes(tmp_path):
    folder = write_byte_tokenizer(tmp_path)
    slow = 3  # what the fake core takes its seed for
    with LLM(str(folder), core_module=FAKE, random_seed=slow) as llm:
        killer = threading.Timer(0.3, os.kill, (llm._client.replicas[0].pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(EngineDeadError, match="SIGKILL"):
            llm.generate(["a" * 500, "b" * 500])
        killer.join()
        for use in (lambda: llm.generate("c"), llm.stats, llm.flush_cache):
            with pytest.raises(EngineDeadError, match="SIGKILL"):
                use()


def test_without_params_the_models_own_are_used(tmp_path):
    folder = write_byte_tokenizer(tmp_path)
    with LLM(str(folder), core_module=FAKE) as llm:
        assert llm.default_sampling_params == SamplingParams(temperature=0.0)
    (folder / "generation_config.json").write_text('{"top_p": 0.5, "temperature": 0.7}')
    with LLM(str(folder), core_module=FAKE) as llm:
        assert llm.default_sampling_params == SamplingParams(temperature=0.7, top_p=0.5)
        assert llm.generate("ab")[0].outputs[0].text == "ab"
    with LLM(str(folder), core_module=FAKE, generation_config="none") as llm:
        assert llm.default_sampling_params == SamplingParams(temperature=0.0)
