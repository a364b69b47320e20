import json
import pickle
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from hpcserve.errors import (
    ContextLengthError,
    InvalidParameterError,
    ModelNotFoundError,
    TokenizerError,
)
from hpcserve.tokenizer.tokenizer import Tokenizer as OurTokenizer


@pytest.fixture
def folder(tmp_path):
    letters = ["<s>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({text: number for number, text in enumerate(letters)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "<|end|>"])
    inner.enable_truncation(4)
    inner.save(str(tmp_path / "tokenizer.json"))
    config = {
        "eos_token": {"content": "<|end|>"},
        "bos_token": "<s>",
        "chat_template": "{{bos_token}}x",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_round_trip(folder):
    tokenizer = OurTokenizer.load(folder)
    text = "Grüße, 東京"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())  # the file's truncation is off
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text, "a"]) == [ids, tokenizer.encode("a")]


def test_half_a_surrogate_pair_is_a_wrong_prompt(folder):
    tokenizer = OurTokenizer.load(folder)
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(InvalidParameterError, match=r"U\+D800.* at character 2") as caught:
            encode("ab\ud800")
        assert caught.value.param == "prompt"


def test_a_text_far_too_long_is_not_tokenised_to_its_end(folder, monkeypatch):
    tokenizer = OurTokenizer.load(folder)  # a token for each byte
    tokenizer.max_tokens = 1000
    sizes = []
    encode = tokenizer.backend.encode
    monkeypatch.setattr(
        tokenizer.backend,
        "encode",
        lambda text, special: sizes.append(len(text)) or encode(text, special),
    )
    with pytest.raises(ContextLengthError, match=r"at least 8000 tokens.*1000") as caught:
        tokenizer.encode("x" * 10**6)
    assert sizes == [8000]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert len(tokenizer.encode("x" * 8000)) == 8000, "whoever asked counts the tokens"
    with pytest.raises(ContextLengthError):
        tokenizer.encode_batch(["a", "x" * 10**6])


def test_special_tokens(folder):
    tokenizer = OurTokenizer.load(folder)
    assert tokenizer.vocab_size == 258
    assert tokenizer.eos_token_id == 1
    assert tokenizer.special_ids == {0, 1}
    assert tokenizer.decode([1, *tokenizer.encode("a")]) == "a"
    assert tokenizer.decode([1], skip_special_tokens=False) == "<|end|>"
    (folder / "tokenizer_config.json").unlink()
    assert OurTokenizer.load(folder).eos_token_id is None
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<s>"}')
    assert OurTokenizer.load(folder).eos_token_id == 0


def test_chat_gets_no_second_bos(folder):
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = OurTokenizer.load(folder)
    assert tokenizer.encode("x")[0] == 0
    assert tokenizer.encode_chat([]).count(0) == 1


def test_promised_bos_is_added(folder):
    config = {"bos_token": "<s>", "add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = OurTokenizer.load(folder)
    assert tokenizer.encode("x")[0] == 0
    assert 0 not in tokenizer.encode("x", add_special_tokens=False)


def test_errors_name_the_file(folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        OurTokenizer.load(tmp_path / "nowhere")
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        OurTokenizer.load(folder)
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        OurTokenizer.load(folder)


def test_without_tokenizer_json_transformers_is_asked(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    tokenizer = OurTokenizer.load(tmp_path)
    assert tokenizer.encode("aba") == [2, 0]
    assert tokenizer.decode([2, 0, 3]) == "aba"
    assert tokenizer.eos_token_id == 3
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.add(n) for n in (2, 0, 3)] == ["ab", "a", ""]


def test_a_folder_with_nothing_is_an_error(tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded"):
        OurTokenizer.load(tmp_path)


def test_import_is_light():
    code = (
        "import sys, hpcserve.tokenizer.tokenizer;"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
