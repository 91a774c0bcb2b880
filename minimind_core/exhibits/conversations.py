"""Loss masks that miss: labels found by searching, late, cut off or forged.

    from minimind_core.exhibits.conversations import search_conversation
    ids, labels = search_conversation(tokenizer, messages, max_length=340)

The road most scripts take: the template makes a text of the conversation,
the tokenizer makes ids of the text, and then somebody looks for the places
where the assistant speaks. Also here: `building`, the steps of the package's
own way, for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from minimind_core.chat import Message, _build, _Builder
from minimind_core.data import Encoded
from minimind_core.exhibits.catalogue import Exhibit
from minimind_core.model import IGNORE_INDEX

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def search_conversation(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    max_length: int | None = None,
    late: int = 0,
) -> Encoded:
    """Ids of a templated text, and labels where a search finds answers.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    messages : sequence of dict
    max_length : int, optional
        What is longer is cut off, wherever that may be.
    late : int
        How many tokens too far on each stretch of labels lies.

    Returns
    -------
    Encoded
    """
    text = tokenizer.apply_chat_template(list(messages), tokenize=False)
    ids = _parse(tokenizer, str(text))[:max_length]
    header = _parse(tokenizer, "<|im_start|>assistant\n")
    footer = _parse(tokenizer, "<|im_end|>\n")
    labels = [IGNORE_INDEX] * len(ids)
    place = 0
    while (found := _find(ids, header, place)) < len(ids):
        start = found + len(header)
        place = _find(ids, footer, start) + len(footer)
        stretch = slice(start + late, place + late)
        labels[stretch] = ids[stretch]
    return Encoded(ids, labels)


def _parse(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Strings of special tokens become those, whoever wrote them."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _find(ids: list[int], pattern: list[int], start: int) -> int:
    """Where a pattern comes next; the end if it does not."""
    for place in range(start, len(ids)):
        if ids[place : place + len(pattern)] == pattern:
            return place
    return len(ids)


class Segment(NamedTuple):
    """A piece of a conversation, as the package adds it.

    Attributes
    ----------
    kind : {"token", "template", "given"}
        A special token, text of the template, or what somebody wrote.
    text : str
    learnt : bool
    """

    kind: str
    text: str
    learnt: bool


class _Recorder(_Builder):
    """The package's builder, remembering what it was told."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer)
        self.segments: list[Segment] = []

    def control(self, token: str, learnt: bool = False) -> None:
        self.segments.append(Segment("token", token, learnt))
        super().control(token, learnt)

    def template(self, text: str, learnt: bool = False) -> None:
        self.segments.append(Segment("template", text, learnt))
        super().template(text, learnt)

    def given(self, text: str, learnt: bool = False) -> None:
        self.segments.append(Segment("given", text, learnt))
        super().given(text, learnt)


def building(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> list[Segment]:
    """The steps in which the package builds ids and labels.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    messages : sequence of dict

    Returns
    -------
    list of Segment
    """
    recorder = _Recorder(tokenizer)
    _build(recorder, messages)
    return recorder.segments


EXHIBITS = (
    Exhibit(
        key="answers-late",
        title="A loss mask that is late by one token",
        commit="58e3af0",
        date="2025-02-09",
        place="model/dataset.py:98",
        cost="The first token of every answer, the one that decides, is "
        "never learnt, and one token after the end is; the training loss "
        "looks better than with the right mask.",
        fix="Give each token its own label and shift once, in the loss.",
        test="tests/test_exhibits_conversations.py::"
        "test_our_labels_begin_with_the_answers_first_token",
        page="07_sft",
    ),
    Exhibit(
        key="marker-search",
        title="Answers that a search for the marker does not find",
        commit="d65ef2c",
        date="2026-08-21",
        place="dataset/lm_dataset.py:65-92",
        cost="Where the line break of the header merges with the answer's "
        "first spaces, the whole answer has no label: code and verse are "
        "left out, without a word.",
        fix="Build labels together with the ids, segment by segment.",
        test="tests/test_exhibits_conversations.py::"
        "test_our_labels_find_an_answer_that_begins_with_spaces",
        page="07_sft",
    ),
    Exhibit(
        key="zero-labels",
        title="A prompt that fills the window leaves nothing to learn",
        commit="d65ef2c",
        date="2026-08-21",
        place="dataset/lm_dataset.py:111-113",
        cost="The row is computed for nothing; a batch of such rows has the "
        "loss NaN; an answer that is cut in two is learnt without its end.",
        fix="Keep whole turns, and skip and count what has no answer left.",
        test="tests/test_exhibits_conversations.py::"
        "test_ours_keeps_whole_turns_and_counts_what_it_skips",
        page="07_sft",
    ),
    Exhibit(
        key="forged-turns",
        title="A user who writes the assistant's turn, and is believed",
        commit="d65ef2c",
        date="2026-08-21",
        place="dataset/lm_dataset.py:81-113",
        cost="Markers in a user's text become real turns, and what they "
        "enclose is learnt as if the assistant had said it.",
        fix="Put special tokens in by their ids, and encode what people "
        "write without any.",
        test="tests/test_exhibits_conversations.py::"
        "test_a_forged_turn_is_text_to_us",
        page="07_sft",
    ),
)
