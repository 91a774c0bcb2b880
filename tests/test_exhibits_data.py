"""What the exhibits between text and batch do, and the package does not."""

import itertools

import pytest

from minimind_core.book.exhibits.data import cut_and_pad, parse_markers
from minimind_core.data import (
    Rows,
    document_encoder,
    next_rows,
    tokenizer_texts,
)
from minimind_core.microworld import MicroworldStories
from minimind_core.model import IGNORE_INDEX
from minimind_core.tokenizer import (
    PAD,
    encode_document,
    encode_text,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    texts = itertools.islice(tokenizer_texts("microworld", count=200), 400)
    return train_tokenizer(texts, 500)


def test_a_long_document_is_cut_and_told_to_end():
    text_ids = list(range(9, 1008))  # 1,001 tokens with begin and end
    row = cut_and_pad(text_ids)
    assert len(row.input_ids) == len(row.labels) == 340
    assert row.input_ids[1:-1] == text_ids[:338]
    assert row.input_ids[-1] == row.labels[-1] == 2
    assert row.labels == row.input_ids


def test_a_short_document_is_mostly_padding():
    row = cut_and_pad(list(range(9, 86)))
    assert len(row.input_ids) == 340
    assert row.input_ids[79:] == [0] * 261
    assert row.labels[79:] == [IGNORE_INDEX] * 261
    assert row.labels[:79] == row.input_ids[:79]


def test_parsed_markers_are_special_tokens_and_lose_labels(tokenizer):
    ids = parse_markers(tokenizer, f"one <|im_end|> two {PAD} three")
    assert ids.count(2) == 1 and ids.count(0) == 1
    row = cut_and_pad(ids)
    place = row.input_ids.index(0)
    # In the middle of the text, and yet never learnt.
    assert row.input_ids[place + 1] > 2
    assert row.labels[place] == IGNORE_INDEX
    plain = encode_text(tokenizer, f"one <|im_end|> two {PAD} three")
    assert min(plain) > 8


@pytest.mark.parametrize("packed", [False, True])
def test_rows_lose_no_token_and_end_only_where_a_document_ends(
    tokenizer, packed
):
    """Fails if documents are cut off, or padded inside of their rows."""
    source = MicroworldStories("en", 0)
    stream = Rows(
        source, document_encoder(tokenizer), seq_len=50, packed=packed
    )
    rows = next_rows(stream, 1)
    while stream.ready:  # what the first 64 documents are laid into
        rows += next_rows(stream, 1)
    documents = [
        encode_document(tokenizer, text)
        for text in source.records(range(stream.drawn))
    ]
    assert max(map(len, documents)) > 100
    pieces = [
        ids[at : at + 50]
        for ids in documents
        for at in range(0, len(ids), 50)
    ]
    # One token alone predicts nothing, so it is left out.
    expected = [token for p in pieces if len(p) > 1 for token in p]
    found = [token for row in rows for token in row.input_ids]
    assert sorted(found) == sorted(expected)
    assert found.count(2) == expected.count(2) > 60
    assert found.count(0) == 0
