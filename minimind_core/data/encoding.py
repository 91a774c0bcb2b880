"""From records to token ids and labels.

    from minimind_core.data import document_encoder
    encode = document_encoder(tokenizer)
    encode(["One day ..."])[0].input_ids
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from minimind_core.chat import encode_conversations
from minimind_core.data.records import Messages
from minimind_core.tokenizer import encode_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

class Encoded(NamedTuple):
    """A document or conversation as the model sees it."""

    input_ids: list[int]
    labels: list[int]


Encoder = Callable[[list[Any]], list[Encoded | None]]
"""Records to token ids; None for a record with nothing to learn."""


def document_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Documents to ids: begin, text, end, and each token a label."""

    def encode(texts: list[str]) -> list[Encoded | None]:
        rows = encode_documents(tokenizer, texts)
        return [Encoded(ids, ids) for ids in rows]

    return encode


def conversation_encoder(
    tokenizer: PreTrainedTokenizerFast, seq_len: int
) -> Encoder:
    """Conversations to ids, with labels on what the assistant says."""

    def encode(batch: list[Messages]) -> list[Encoded | None]:
        found = encode_conversations(tokenizer, batch, max_length=seq_len)
        return [one and Encoded(one.input_ids, one.labels) for one in found]

    return encode
