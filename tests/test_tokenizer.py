"""Text to ids and back, and no marker that text can forge."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

from minimind_core.data import tokenizer_texts
from minimind_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
)
from minimind_core.tokenizer import (
    CHAT_TEMPLATE,
    MARKERS,
    SMALLEST,
    SPECIAL_TOKENS,
    control_tokens,
    decode,
    encode_document,
    encode_documents,
    encode_text,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    tokenizer_digest,
    train_tokenizer,
)


def make(count=150, size=600):
    return train_tokenizer(tokenizer_texts("microworld", count=count), size)


TOKENIZER = make()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back(text):
    ids = encode_text(TOKENIZER, text)
    assert TOKENIZER.decode(ids) == text
    assert decode(TOKENIZER, encode_document(TOKENIZER, text)) == text


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(
    [*SPECIAL_TOKENS, *MARKERS, "a", " ", "\n", "<|"]), max_size=8))
def test_a_marker_in_text_is_text(parts):
    text = "".join(parts)
    reserved = range(len(SPECIAL_TOKENS) + len(MARKERS))
    assert not set(encode_text(TOKENIZER, text)) & set(reserved)
    first, *inner, last = encode_document(TOKENIZER, text)
    assert (first, last) == (1, 2)
    assert not set(inner) & set(reserved)


def test_special_tokens_have_upstreams_ids():
    ids = TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == [0, 1, 2]
    assert TOKENIZER.pad_token_id == 0
    assert (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (1, 2)
    assert len(TOKENIZER) <= 600


def test_the_same_texts_give_the_same_tokenizer():
    assert tokenizer_digest(make()) == tokenizer_digest(TOKENIZER)
    assert tokenizer_digest(make(count=90)) != tokenizer_digest(TOKENIZER)


def test_the_digest_covers_all_that_decides_the_ids():
    known = tokenizer_digest(TOKENIZER)
    cut = copy.deepcopy(TOKENIZER)
    cut.backend_tokenizer.enable_truncation(5)
    assert tokenizer_digest(cut) == known
    longer = copy.deepcopy(TOKENIZER)
    longer.add_tokens(["Kyoto"])
    spoken = copy.deepcopy(TOKENIZER)
    spoken.chat_template = "{{ messages[0].content }}"
    others = {tokenizer_digest(longer), tokenizer_digest(spoken)}
    assert len({known} | others) == 3


def test_batches_equal_single_documents():
    texts = ["One day.", "", "漢字 é"]
    assert encode_documents(TOKENIZER, texts) == [
        encode_document(TOKENIZER, text) for text in texts
    ]


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=str(SMALLEST)):
        train_tokenizer(["text"], SMALLEST - 1)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], 300)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="already exists"):
        train_tokenizer(["text"], 300, out=tmp_path)


def test_saved_and_loaded_by_us_and_by_transformers(tmp_path):
    save_tokenizer(TOKENIZER, tmp_path)
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "One sunny day, Mia met Tom. 你好"
    for loaded in (
        load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ):
        assert loaded.chat_template == CHAT_TEMPLATE
        assert encode_text(loaded, text) == encode_text(TOKENIZER, text)
        assert loaded.encode(text) == encode_text(TOKENIZER, text)


def test_upstreams_file_format_is_read(tmp_path):
    # 36 added tokens, as in MiniMind-3's tokenizer: three first, then more.
    save_tokenizer(TOKENIZER, tmp_path)
    path = tmp_path / "tokenizer.json"
    parts = json.loads(path.read_text())
    size = max(parts["model"]["vocab"].values()) + 1
    for number in range(27):
        token = f"<|buffer{number}|>"
        parts["model"]["vocab"][token] = size + number
        parts["added_tokens"].append(
            {"id": size + number, "content": token, "special": False,
             "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
        )  # fmt: skip
    path.write_text(json.dumps(parts))
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
    )
    loaded = load_tokenizer(tmp_path)
    assert len(loaded.get_added_vocab()) == 36
    from minimind_core.chat import encode_prompt

    prompt = encode_prompt(loaded, [{"role": "user", "content": "Hi"}])
    assert loaded.decode(prompt).endswith("<think>\n\n</think>\n\n")
    # Its template does not write this one, so it is a word like others.
    assert encode_text(loaded, "<|buffer3|>") == [size + 3]
    assert "<|buffer3|>" not in control_tokens(loaded)
    assert len(encode_text(loaded, "<think><|im_end|>")) > 10


def test_damaged_or_foreign_files_are_told(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path)
    save_tokenizer(TOKENIZER, tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_tokenizer(tmp_path)
    path.write_text(whole)
    config = tmp_path / "tokenizer_config.json"
    named = json.loads(config.read_text())
    del named["eos_token"]
    config.write_text(json.dumps(named))
    with pytest.raises(CheckpointError, match="names no eos_token"):
        load_tokenizer(tmp_path)


def other_ids():
    """Special tokens with other names, at the end of the vocabulary."""
    backend = Tokenizer.from_str(TOKENIZER.backend_tokenizer.to_str())
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return made


def test_special_tokens_may_have_other_names_and_ids(tmp_path):
    made = other_ids()
    save_tokenizer(made, tmp_path)
    loaded = load_tokenizer(tmp_path)
    end = loaded.eos_token_id
    assert end == len(TOKENIZER)
    assert special_ids(loaded) == (end, end, end)
    ids = encode_document(loaded, "One day")
    assert ids[0] == ids[-1] == end
    assert decode(loaded, ids) == "One day"
    # 0, 1 and 2 are text there like any other.
    assert decode(loaded, [1, *encode_text(loaded, "day")]) != "day"
    loaded.bos_token, loaded.pad_token = "<think>", "</think>"
    assert special_ids(loaded) == (7, end, 8)
    loaded.eos_token = None
    with pytest.raises(DataError, match="names no eos_token"):
        special_ids(loaded)


def test_our_template_is_given_only_where_its_tokens_are(tmp_path):
    made = other_ids()
    save_tokenizer(made, tmp_path / "ours")
    assert load_tokenizer(tmp_path / "ours").chat_template == CHAT_TEMPLATE
    parts = json.loads(made.backend_tokenizer.to_str())
    parts["added_tokens"] = []
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(parts)),
        eos_token="</s>",
    )  # fmt: skip
    save_tokenizer(bare, tmp_path / "bare")
    assert load_tokenizer(tmp_path / "bare").chat_template is None


def test_words_added_later_are_noticed():
    tokenizer = make()
    before = encode_text(tokenizer, "Kyoto day")
    tokenizer.add_tokens(["Kyoto"])
    ids = encode_text(tokenizer, "Kyoto day")
    assert ids == tokenizer("Kyoto day").input_ids != before
    kyoto = tokenizer.convert_tokens_to_ids("Kyoto")
    assert kyoto in encode_document(tokenizer, "in Kyoto")
    assert decode(tokenizer, ids) == "Kyoto day"
    # One that the merges have already leaves the vocabulary's size as it is.
    word = tokenizer.convert_ids_to_tokens(encode_text(tokenizer, "day")[0])
    size = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, special=True)])
    assert len(tokenizer) == size
    assert word in control_tokens(tokenizer)
    # Which of them are control tokens can also be listed.
    tokenizer.chat_control_tokens = ["Kyoto"]
    assert kyoto not in encode_text(tokenizer, "Kyoto")


def test_the_chat_template_says_which_tokens_are_control():
    tokenizer = make()
    tokenizer.add_tokens(["Kyoto", "for", "<|note|>"])
    assert not {"Kyoto", "for"} & set(control_tokens(tokenizer))
    tokenizer.chat_template += "{{ '<|note|>' }}"
    assert "<|note|>" in control_tokens(tokenizer)
    assert "for" not in control_tokens(tokenizer)
