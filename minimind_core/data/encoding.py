"""Encode records as token ids and labels.

    from minimind_core.data import document_encoder
    encode = document_encoder(tokenizer)
    encode(["One day ..."])[0].input_ids
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from minimind_core.chat import encode_conversations
from minimind_core.data.records import Messages
from minimind_core.errors import DataError
from minimind_core.tokenizer import encode_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ids: TypeAlias = list[int] | npt.NDArray[np.int32]
"""Token ids or labels: a list, or an array from a file of tokens."""


class Encoded(NamedTuple):
    """A document or conversation as the model sees it."""

    input_ids: Ids
    labels: Ids


Encoder = Callable[[list[Any]], list[Encoded | None]]
"""Records to token ids; None for a record without supervised tokens."""


@dataclass(frozen=True)
class DocumentEncoder:
    """Encodes documents; see `document_encoder`."""

    tokenizer: PreTrainedTokenizerFast

    def __call__(self, texts: list[str]) -> list[Encoded | None]:
        """Encode documents."""
        rows = encode_documents(self.tokenizer, texts)
        return [Encoded(ids, ids) for ids in rows]


@dataclass(frozen=True)
class ConversationEncoder:
    """Encodes conversations; see `conversation_encoder`."""

    tokenizer: PreTrainedTokenizerFast
    seq_len: int
    skip: bool = False

    def __call__(self, batch: list[Messages]) -> list[Encoded | None]:
        """Encode conversations."""
        try:
            found = encode_conversations(
                self.tokenizer, batch, max_length=self.seq_len
            )
        except DataError:
            if not self.skip:
                raise
            if len(batch) == 1:
                return [None]
            return [one for record in batch for one in self([record])]
        return [one and Encoded(one.input_ids, one.labels) for one in found]


def document_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Return an encoder of documents, in which every token is supervised."""
    return DocumentEncoder(tokenizer)


def conversation_encoder(
    tokenizer: PreTrainedTokenizerFast,
    seq_len: int,
    *,
    skip: bool = False,
) -> Encoder:
    """Return an encoder of conversations that supervises the answers.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    seq_len : int
        See `chat.encode_conversation`, whose ``max_length`` it is.
    skip : bool
        None, instead of an error, for a conversation that the tokenizer's
        chat template refuses.
    """
    return ConversationEncoder(tokenizer, seq_len, skip)
