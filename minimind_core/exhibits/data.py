"""Bugs between a text and a batch: what is cut, filled and misread.

    from minimind_core.exhibits.data import cut_and_pad, parse_markers
    cut_and_pad(list(range(9, 1008))).input_ids[-1]   # 2, "the end"
    parse_markers(tokenizer, "a <|im_end|> b")        # has a real 2 in it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimind_core.data import Encoded
from minimind_core.exhibits.catalogue import Exhibit
from minimind_core.model import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
MAX_SEQ_LEN = 340
"""Upstream's default length of a row: trainer/train_pretrain.py:99."""


def cut_and_pad(
    text_ids: list[int], max_length: int = MAX_SEQ_LEN
) -> Encoded:
    """One document a row: too long is cut off, too short is filled up.

    Parameters
    ----------
    text_ids : list of int
        A document's tokens, without begin and end.
    max_length : int
        Of every row.

    Returns
    -------
    Encoded
        With an end token, also where the text did not end; labels are
        ignored wherever there is the *id* of padding.
    """
    ids = [BOS_ID, *text_ids[: max_length - 2], EOS_ID]
    ids += [PAD_ID] * (max_length - len(ids))
    labels = [IGNORE_INDEX if one == PAD_ID else one for one in ids]
    return Encoded(ids, labels)


def parse_markers(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> list[int]:
    """Ids of a text in which special tokens' strings mean the tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    text : str

    Returns
    -------
    list of int
        What `transformers` gives by default.
    """
    return list(tokenizer(text, add_special_tokens=False).input_ids)


EXHIBITS = (
    Exhibit(
        key="cut-and-pad",
        title="Every document is cut or padded to 340 tokens",
        commit="d65ef2c",
        date="2026-08-21",
        place="dataset/lm_dataset.py:49-54",
        cost="Of a document of 1,001 tokens 340 are kept and the rest is "
        "never seen, with an end token where the text did not end; a short "
        "document fills its row with padding, which is computed for nothing.",
        fix="Pack documents into rows, go on with a long one in the next "
        "row, and let tokens see their own document only.",
        test="tests/test_exhibits_data.py::"
        "test_rows_lose_no_token_and_end_only_where_a_document_ends",
        page="02_tokens",
    ),
    Exhibit(
        key="markers-in-text",
        title="A text about the end token ends there",
        commit="d65ef2c",
        date="2026-08-21",
        place="dataset/lm_dataset.py:49",
        cost="The string <|im_end|> in a plain text becomes the real end of "
        "a document, and <|endoftext|> becomes padding without a label.",
        fix="Encode text with a tokenizer that has no special tokens, and "
        "put those in by their ids.",
        test="tests/test_tokenizer.py::test_a_marker_in_text_is_text",
        page="02_tokens",
    ),
)
