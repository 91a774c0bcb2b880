"""Bugs between text and batch: truncation, padding, forged tokens.

    from minimind_core.book.exhibits.data import cut_and_pad, parse_markers
    cut_and_pad(list(range(9, 1008))).input_ids[-1]   # 2, "the end"
    parse_markers(tokenizer, "a <|im_end|> b")        # has a real 2 in it
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimind_core.book.exhibits.bench import small_tokenizer
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.data import Encoded, pack
from minimind_core.model import IGNORE_INDEX
from minimind_core.tokenizer import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
MAX_SEQ_LEN = 340
"""Upstream's default length of a row: trainer/train_pretrain.py:99."""


def cut_and_pad(
    text_ids: list[int], max_length: int = MAX_SEQ_LEN
) -> Encoded:
    """Put one document per row, truncated or padded to a fixed length.

    Parameters
    ----------
    text_ids : list of int
        A document's tokens, without begin and end.
    max_length : int
        Length of every row.

    Returns
    -------
    Encoded
        It ends with an end token even if the text was truncated. Where an
        id is that of padding, the label is ignored, even inside the text.
    """
    ids = [BOS_ID, *text_ids[: max_length - 2], EOS_ID]
    ids += [PAD_ID] * (max_length - len(ids))
    labels = [IGNORE_INDEX if one == PAD_ID else one for one in ids]
    return Encoded(ids, labels)


def parse_markers(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> list[int]:
    """Encode a text so that special tokens' strings become the tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    text : str

    Returns
    -------
    list of int
        The result of `transformers` by default.
    """
    return list(tokenizer(text, add_special_tokens=False).input_ids)


# --- measured -----------------------------------------------------------


def measure_cut() -> Measured:
    """How many tokens are kept of a document of 1,001."""
    document = list(range(9, 1008))
    bug = len(cut_and_pad(document).input_ids)
    whole = [BOS_ID, *document, EOS_ID]
    pieces = [whole[at : at + MAX_SEQ_LEN]
              for at in range(0, len(whole), MAX_SEQ_LEN)]  # fmt: skip
    rows = pack([Encoded(ids, ids) for ids in pieces], MAX_SEQ_LEN)
    fix = sum(len(row.input_ids) for row in rows)
    return Measured(
        "Number of tokens that are kept of a document of 1,001, its start "
        "and end token included.",
        f"{bug}", f"{fix:,}", bug == 340 and fix == 1001,
    )  # fmt: skip


def measure_markers() -> Measured:
    """The number of end tokens in a sentence that mentions one."""
    tokenizer = small_tokenizer()
    said = "In ChatML a turn ends with <|im_end|> and a line break."
    bug = parse_markers(tokenizer, said).count(EOS_ID)
    fix = encode_text(tokenizer, said).count(EOS_ID)
    return Measured(
        "Number of end tokens in a plain sentence that mentions the marker.",
        f"{bug}", f"{fix}", bug == 1 and fix == 0,
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="cut-and-pad",
        title="Every document is cut or padded to 340 tokens",
        commit="d65ef2c",
        date="2026-08-21",
        place="dataset/lm_dataset.py:49-54",
        quote="tokens = self.tokenizer(str(sample['text']), ..., "
        "truncation=True).input_ids\n"
        "tokens = [self.tokenizer.bos_token_id] + tokens + "
        "[self.tokenizer.eos_token_id]\n"
        "input_ids = tokens + [self.tokenizer.pad_token_id] * "
        "(self.max_length - len(tokens))",
        came="2025-02-09 58e3af0",
        kind=Kind.DATA,
        noticed=Notice.NOTHING,
        cost="A document keeps at most 338 tokens of its own, between a "
        "start and an end token, and the rest is never seen. The model "
        "learns an end where the text did not end. A short document is "
        "filled up with padding, which is computed for nothing.",
        fix="Pack documents into rows, continue a long one in the next row, "
        "and let tokens attend only to their own document.",
        measure=measure_cut,
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
        quote="tokens = self.tokenizer(str(sample['text']), "
        "add_special_tokens=False, max_length=self.max_length - "
        "2, truncation=True).input_ids",
        came="2025-02-09 58e3af0",
        kind=Kind.DATA,
        noticed=Notice.NOTHING,
        cost="The string <|im_end|> in a plain text becomes the real end of "
        "a document, and <|endoftext|> becomes padding without a label. "
        "`add_special_tokens=False` does not prevent this: it only adds no "
        "tokens at the ends, and markers inside the text are still parsed.",
        fix="Encode text with a tokenizer without special tokens, and insert "
        "those by their ids.",
        measure=measure_markers,
        test="tests/test_tokenizer.py::test_a_marker_in_text_is_text",
        page="02_tokens",
    ),
)
