"""Conversations to token ids, and which of them the model learns to say.

    from minimind_core.chat import encode_conversation, encode_prompt
    ids, labels = encode_conversation(tokenizer, [
        {"role": "user", "content": "Where did Mia go?"},
        {"role": "assistant", "content": "Mia went to the lake."},
    ])

Ids and labels are built together, segment by segment. Nothing is searched
for afterwards, so nothing a user writes can be taken for a marker, and no
label can be off by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from minimind_core.errors import DataError
from minimind_core.tokenizer import CHAT_TEMPLATE, plain_backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROLES = ("system", "user", "assistant", "tool")
IGNORE_INDEX = -100

Message = dict[str, Any]


class NoSupervisedTokens(DataError):
    """Nothing in a conversation is left to learn from."""


class EncodedConversation(NamedTuple):
    """Ids, and for each the label: itself where it is learnt, else -100."""

    input_ids: list[int]
    labels: list[int]


def validate_messages(
    messages: Any, where: str, *, answered: bool = True
) -> None:
    """Check the form of a conversation.

    Parameters
    ----------
    messages : list of dict
        Each with ``role`` and ``content``; an assistant's may have
        ``reasoning_content`` and ``tool_calls``.
    where : str
        Named in errors, best file and line.
    answered : bool
        Whether the assistant must have said something.

    Raises
    ------
    DataError
        Naming the message that is wrong and how.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: expected a non-empty list of messages")
    for number, message in enumerate(messages, 1):
        at = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise DataError(f"{at}: expected an object, found {message!r}")
        role = message.get("role")
        if role not in ROLES:
            raise DataError(
                f"{at}: role must be one of {', '.join(ROLES)}, not {role!r}"
            )
        content = message.get("content")
        calls = _tool_calls(message, at)
        if not isinstance(content, str) and not (content is None and calls):
            raise DataError(f"{at}: content must be text, not {content!r}")
        reasoning = message.get("reasoning_content")
        if not isinstance(reasoning, str | None):
            raise DataError(f"{at}: reasoning_content must be text")
        _tools(message, at)
    if answered and all(m["role"] != "assistant" for m in messages):
        raise DataError(f"{where}: the assistant says nothing to learn from")


def _from_json(message: Message, key: str, at: str) -> list[Any]:
    """A list that MiniMind's data keeps as a JSON string."""
    value = message.get(key) or []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(f"{at}: {key} is no JSON ({error.msg})") from None
    if not isinstance(value, list):
        raise DataError(f"{at}: {key} must be a list")
    return value


def _tool_calls(message: Message, at: str) -> list[Message]:
    calls = []
    for call in _from_json(message, "tool_calls", at):
        call = call.get("function", call) if isinstance(call, dict) else {}
        if "name" not in call:
            raise DataError(f"{at}: a tool call has no name")
        calls.append(call)
    return calls


def _tools(message: Message, at: str) -> list[Any]:
    return _from_json(message, "tools", at)


def normalise(messages: Sequence[Message]) -> tuple[list[Message], list[Any]]:
    """Messages as a chat template takes them, and the tools they offer.

    Parameters
    ----------
    messages : sequence of dict
        ``tools`` and ``tool_calls`` may be JSON strings, as in MiniMind's
        data.

    Returns
    -------
    messages, tools : list
    """
    plain: list[Message] = []
    tools: list[Any] = []
    for number, message in enumerate(messages, 1):
        at = f"message {number}"
        tools = tools or _tools(message, at)
        kept = {
            key: message[key]
            for key in ("role", "content", "reasoning_content")
            if message.get(key) is not None
        }
        kept.setdefault("content", "")
        if calls := _tool_calls(message, at):
            kept["tool_calls"] = calls
        plain.append(kept)
    return plain, tools


class _Builder:
    """Ids and labels of one conversation, as it grows.

    Text between two special tokens is encoded in one go, as a template's
    output would be, and its labels follow from where in it the assistant
    begins to speak.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.backend = plain_backend(tokenizer)
        self.special = tokenizer.get_added_vocab()
        longest = sorted(self.special, key=len, reverse=True)
        either = "|".join(map(re.escape, longest))
        self.pattern = re.compile(f"({either})")
        self.ids: list[int] = []
        self.labels: list[int] = []
        self.pending: list[tuple[str, bool]] = []

    def control(self, token: str, learnt: bool = False) -> None:
        """One special token."""
        self.flush()
        self.ids.append(self.special[token])
        self.labels.append(self.ids[-1] if learnt else IGNORE_INDEX)

    def template(self, text: str, learnt: bool = False) -> None:
        """Text of the template itself."""
        self.pending.append((text, learnt))

    def given(self, text: str, learnt: bool = False) -> None:
        """Text somebody wrote: markers in it are text, on their own."""
        for place, piece in enumerate(self.pattern.split(text)):
            if place % 2:
                self.flush()
                self.pending.append((piece, learnt))
                self.flush()
            elif piece:
                self.pending.append((piece, learnt))

    def flush(self) -> None:
        """Encode what has gathered."""
        text = "".join(piece for piece, _ in self.pending)
        if not text:
            self.pending.clear()
            return
        learnt = [flag for piece, flag in self.pending for _ in piece]
        self.pending.clear()
        found = self.backend.encode(text)
        self.ids += found.ids
        # A token that begins before the answer does is not the answer's.
        starts = [start for start, _ in found.offsets]
        self.labels += [
            token if learnt[start] else IGNORE_INDEX
            for token, start in zip(found.ids, starts, strict=True)
        ]


def _build(
    builder: _Builder, messages: Sequence[Message]
) -> list[tuple[int, int]]:
    """Lay out a conversation; returns where each assistant turn ends."""
    plain, tools = normalise(messages)
    ends: list[tuple[int, int]] = []
    if tools:
        _offer(builder, plain, tools)
        if plain[0]["role"] == "system":
            plain = plain[1:]
    for place, message in enumerate(plain):
        role, says = message["role"], message["role"] == "assistant"
        if role == "tool":
            _tool_result(builder, plain, place)
            continue
        builder.control("<|im_start|>")
        builder.template(role + "\n")
        if says and message.get("reasoning_content"):
            builder.control("<think>", True)
            builder.template("\n", True)
            builder.given(message["reasoning_content"], True)
            builder.template("\n", True)
            builder.control("</think>", True)
            builder.template("\n\n", True)
        builder.given(message["content"], says)
        for number, call in enumerate(message.get("tool_calls", [])):
            _tool_call(builder, call, bool(message["content"] or number))
        builder.control("<|im_end|>", says)
        builder.template("\n")
        if says:
            # The line break behind belongs to the turn, as in the template.
            builder.flush()
            ends.append((place, len(builder.ids)))
    builder.flush()
    return ends


def _offer(
    builder: _Builder, messages: Sequence[Message], tools: list[Any]
) -> None:
    builder.control("<|im_start|>")
    builder.template("system\n")
    if messages[0]["role"] == "system":
        builder.given(messages[0]["content"])
        builder.template("\n\n")
    builder.template("# Tools\n")
    for tool in tools:
        builder.template("\n")
        builder.given(_json(tool))
    builder.template("\n\nTo use one, answer with\n")
    builder.control("<tool_call>")
    builder.template('\n{"name": ..., "arguments": ...}\n')
    builder.control("</tool_call>")
    builder.control("<|im_end|>")
    builder.template("\n")


def _tool_call(builder: _Builder, call: Message, apart: bool) -> None:
    if apart:
        builder.template("\n", True)
    builder.control("<tool_call>", True)
    builder.template('\n{"name": "', True)
    builder.given(call["name"], True)
    builder.template('", "arguments": ', True)
    arguments = call.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = _json(arguments)
    builder.given(arguments, True)
    builder.template("}\n", True)
    builder.control("</tool_call>", True)


def _tool_result(
    builder: _Builder, messages: Sequence[Message], place: int
) -> None:
    """Results of tools are said by the user; neighbours share a turn."""
    if place == 0 or messages[place - 1]["role"] != "tool":
        builder.control("<|im_start|>")
        builder.template("user")
    builder.template("\n")
    builder.control("<tool_response>")
    builder.template("\n")
    builder.given(messages[place]["content"])
    builder.template("\n")
    builder.control("</tool_response>")
    last = place + 1 == len(messages)
    if last or messages[place + 1]["role"] != "tool":
        builder.control("<|im_end|>")
        builder.template("\n")


def _json(value: Any) -> str:
    """As the template's ``tojson`` writes it."""
    return json.dumps(value, ensure_ascii=False)


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    max_length: int | None = None,
) -> EncodedConversation:
    """Ids and labels of a whole conversation.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    messages : sequence of dict
        See `validate_messages`.
    max_length : int, optional
        Turns at the end that do not fit are left out whole: half an answer
        would teach the model to stop in the middle, or never.

    Returns
    -------
    EncodedConversation
        The ids are those of ``apply_chat_template``. Labels stand on what
        the assistant says and on the ``<|im_end|>`` with which it stops.

    Raises
    ------
    DataError
        If a message has not the right form.
    NoSupervisedTokens
        If not even the first answer fits, or there is none.
    """
    validate_messages(list(messages), "conversation", answered=False)
    builder = _Builder(tokenizer)
    ends = [end for _, end in _build(builder, messages)]
    if not ends:
        raise NoSupervisedTokens("the assistant says nothing")
    length = len(builder.ids)
    if max_length is not None and length > max_length:
        # The line break after the last turn that is kept may fall away.
        fitting = [end for end in ends if end - 1 <= max_length]
        if not fitting:
            raise NoSupervisedTokens(
                f"the first answer ends at token {ends[0]}, beyond "
                f"{max_length}"
            )
        length = min(fitting[-1], max_length)
    return EncodedConversation(builder.ids[:length], builder.labels[:length])


def encode_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> list[int]:
    """Ids of a conversation that the assistant is to continue.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        With another chat template than ours (MiniMind's own files have one),
        that template is followed.
    messages : sequence of dict

    Returns
    -------
    list of int
        Ending with ``<|im_start|>assistant`` and a line break.
    """
    validate_messages(list(messages), "prompt", answered=False)
    if tokenizer.chat_template != CHAT_TEMPLATE:
        return _foreign_prompt(tokenizer, messages)
    builder = _Builder(tokenizer)
    _build(builder, messages)
    builder.control("<|im_start|>")
    builder.template("assistant\n")
    builder.flush()
    return builder.ids


def _foreign_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> list[int]:
    plain, tools = normalise(messages)
    found = tokenizer.apply_chat_template(
        plain,
        tools=tools or None,
        add_generation_prompt=True,
        return_dict=False,
        **_sanitized(tokenizer),
    )
    return list(found)


def _sanitized(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Markers in user text stay text, where transformers can do that."""
    import inspect

    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    name = "sanitize_control_tokens"
    return {name: True} if name in parameters else {}
