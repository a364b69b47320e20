from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from hpcserve.tokenizer.byte_level import byte_alphabet
from hpcserve.tokenizer.tokenizer import Tokenizer as OurTokenizer

CORPUS = ["Das Grün der Bäume, 東京の天気 🙂👍🏽, naïve café — ça va?", "the quick brown fox "] * 4
BYTES = [AddedToken(f"<0x{number:02X}>", special=False) for number in range(256)]


@cache
def byte_level():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|end|>", "<|é x|>"],
            show_progress=False,
        ),
    )
    inner.add_tokens(["plain added é"])
    return inner


@cache
def sentencepiece_style():
    """As Llama 2: a metaspace, and bytes for what the vocabulary lacks."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{n:02X}>" for n in range(256)], "▁", "▁the", "▁fox"]
    pieces += sorted({character for line in CORPUS[1:2] for character in line if character != " "})
    inner = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    return inner


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {}
    for name, build in {"bytes": byte_level, "pieces": sentencepiece_style}.items():
        folder = tmp_path_factory.mktemp(name)
        build().save(str(folder / "tokenizer.json"))
        found[name] = OurTokenizer.load(folder)
    return found


def stream(tokenizer, ids, skip):
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    pieces = [detokenizer.add(token_id) for token_id in ids]
    return [*pieces, detokenizer.finish()]


def test_the_kinds_are_told_apart(folders):
    assert folders["bytes"].backend.is_byte_level
    assert not folders["pieces"].backend.is_byte_level


def test_alphabet_is_the_libraries():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@given(ids=st.lists(st.integers(0, 420), max_size=40), skip=st.booleans(), cut=st.integers(0, 40))
def test_any_byte_level_tokens_stream_to_one_decode(folders, ids, skip, cut):
    tokenizer = folders["bytes"]
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, skip)) == whole
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    parts = [detokenizer.add_all(ids[:cut]), *map(detokenizer.add, ids[cut:])]
    assert "".join(parts) + detokenizer.finish() == whole


@settings(max_examples=50)
@given(text=st.text(max_size=40))
def test_no_replacement_inside_valid_text(folders, text):
    for tokenizer in folders.values():
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = stream(tokenizer, ids, skip=True)
        assert "".join(pieces) == tokenizer.decode(ids)
        for piece in pieces:
            assert piece in text or "�" not in piece


@given(
    words=st.lists(
        st.sampled_from(["▁the", "▁fox", "▁", "q", "<s>", "</s>", "東", "🙂", "é"]), max_size=25
    ),
    skip=st.booleans(),
)
def test_sentencepiece_tokens_stream_to_one_decode(folders, words, skip):
    tokenizer = folders["pieces"]
    ids = []
    for word in words:
        known = tokenizer.backend.token_to_id(word)
        spelled = [tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in word.encode()]
        ids += spelled if known is None else [known]
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(stream(tokenizer, ids, skip)) == whole


def test_half_a_character_waits_and_is_replaced_at_the_end(folders):
    for tokenizer in folders.values():
        ids = tokenizer.encode("🙃", add_special_tokens=False)
        *before, last = stream(tokenizer, ids, skip=True)
        assert "".join(before).strip() == "🙃"
        assert last == ""
        *before, last = stream(tokenizer, ids[:-1], skip=True)
        assert "".join(before).strip() == ""
        assert set(last) == {"�"}


def test_first_space_is_lost_only_at_the_start(folders):
    tokenizer = folders["pieces"]
    ids = [tokenizer.backend.token_to_id(piece) for piece in ("▁the", "▁fox", "▁the")]
    assert stream(tokenizer, ids, skip=True) == ["the", " fox", " the", ""]


def test_unknown_ids_have_no_text(folders):
    assert folders["bytes"].detokenizer().add(10**6) == ""
    assert folders["bytes"].token_text(10**6) == ""


def test_one_token_as_text(folders):
    tokenizer = folders["bytes"]
    half = tokenizer.encode("🙃", add_special_tokens=False)[0]
    assert "�" in tokenizer.token_text(half)
    assert tokenizer.token_bytes(half) == "🙃".encode()[: len(tokenizer.token_bytes(half))]
    pieces = folders["pieces"]
    assert pieces.token_bytes(pieces.backend.token_to_id("▁the")) == b"the"
