"""Convert the records of other data sets to messages, pairs and prompts.

    from minimind_core.data.schemas import to_messages
    to_messages({"conversations": [{"from": "human", "value": "Hi"},
                                   {"from": "gpt", "value": "Hello."}]})

MiniMind's own records come out as they went in. ShareGPT's and OpenAI's
are rewritten to the same form, which is a list of messages with ``role``
and ``content``, and the assistant's also with ``reasoning_content`` and
``tool_calls``. Nothing is checked here but what the conversion itself needs:
`records` validates the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind_core.errors import DataError

CONVERSATIONS = ("conversations", "messages")
"""Names of a list of messages: MiniMind's and ShareGPT's, and OpenAI's."""

SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant",
    "chatgpt": "assistant", "assistant": "assistant", "system": "system",
    "tool": "tool", "observation": "tool", "function_call": "assistant",
}  # fmt: skip
"""What ``from`` means in ShareGPT's data, and in LLaMA-Factory's form of it,
in which ``function_call`` holds a call as JSON and ``observation`` what it
returned."""


def conversation_name(record: Mapping[str, Any]) -> str | None:
    """Name of the record's list of messages; None if it has none."""
    return next((name for name in CONVERSATIONS if name in record), None)


def to_messages(record: Any, where: str = "record") -> Any:
    """Return the messages of a record.

    Parameters
    ----------
    record : mapping or list
        A record with ``conversations`` or ``messages``, or the list alone. A
        record may also have ``tools`` and, as in ShareGPT, ``system``.
    where : str
        For errors.

    Returns
    -------
    list of dict
        Or the value as it is, if it is no list.

    Raises
    ------
    DataError
        For an unknown ``from``, or a message that is not to be trained on.
    """
    outer: Mapping[str, Any] = {}
    if isinstance(record, Mapping):
        outer, record = record, record[conversation_name(record) or ""]
    if not isinstance(record, list) or not record:
        return record
    messages = [
        _message(one, f"{where}, message {number}")
        for number, one in enumerate(record, 1)
    ]
    system, tools = outer.get("system"), outer.get("tools")
    if not system and not tools:
        return messages
    first = messages[0]
    given = isinstance(first, Mapping) and first.get("role") == "system"
    if not given:
        messages.insert(0, {"role": "system", "content": system or ""})
    if tools and not any(
        isinstance(one, Mapping) and one.get("tools") for one in messages
    ):
        # Where MiniMind's data has them, and the chat template expects them.
        messages[0] = {**messages[0], "tools": tools}
    return messages


def _message(message: Any, where: str) -> Any:
    """One message in the form of MiniMind's data."""
    if not isinstance(message, Mapping):
        return message
    if "role" not in message and {"from", "value"} <= message.keys():
        return _from_sharegpt(message, where)
    if message.get("weight") == 0:
        # Its author meant it to be in the context only, and every answer of
        # a conversation is supervised here.
        raise DataError(
            f"{where}: has weight 0, so it is not to be trained on, but all "
            "answers of a conversation are; remove the message or the weight"
        )
    changes: dict[str, Any] = {}
    if message.get("role") == "developer":  # OpenAI's newer name
        changes["role"] = "system"
    content = message.get("content")
    if isinstance(content, list) and all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in content
    ):
        changes["content"] = "".join(part["text"] for part in content)
    return {**message, **changes} if changes else message


def _from_sharegpt(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    name, value = message["from"], message["value"]
    role = SHAREGPT_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise DataError(
            f"{where}: 'from' must be one of {', '.join(SHAREGPT_ROLES)}, "
            f"not {name!r:.80}"
        )
    others = {k: v for k, v in message.items() if k not in ("from", "value")}
    if name == "function_call":
        if isinstance(value, str) and not value.lstrip().startswith("["):
            value = f"[{value}]"
        return {"role": role, "content": "", "tool_calls": value, **others}
    return {"role": role, "content": value, **others}


def to_preference(
    record: Mapping[str, Any], where: str = "record"
) -> dict[str, Any]:
    """Return the two conversations of a preference pair.

    Parameters
    ----------
    record : mapping
        ``{"chosen": [...], "rejected": [...]}`` as in MiniMind's DPO data,
        two conversations that end in different answers. In the data of trl
        there may be a ``prompt`` beside them, and then each of the three may
        be a text, or messages.
    where : str
        For errors.

    Returns
    -------
    dict
        ``chosen`` and ``rejected``, each a list of messages.

    Raises
    ------
    DataError
        If the two do not begin with the same message.
    """
    prompt = _opening(record.get("prompt"), where)
    found = {}
    for name in ("chosen", "rejected"):
        value = record[name]
        if isinstance(value, str):
            if not prompt:
                raise DataError(
                    f"{where}: {name!r} is a text, so the record needs a "
                    "'prompt' that it answers"
                )
            value = [{"role": "assistant", "content": value}]
        value = to_messages(value, f"{where}, {name}")
        # Some data sets repeat the prompt at the start of both.
        whole = isinstance(value, list) and any(
            isinstance(one, Mapping) and one.get("role") == "user"
            for one in value
        )
        found[name] = value if whole or not prompt else prompt + value
    if found["chosen"][:1] != found["rejected"][:1]:
        raise DataError(
            f"{where}: 'chosen' and 'rejected' must answer the same prompt, "
            "but their first messages differ"
        )
    return found


def to_prompt(record: Any, where: str = "record") -> Any:
    """Return the messages that a policy is to answer.

    Parameters
    ----------
    record : mapping or list
        As in MiniMind's RLAIF data a conversation, whose last answer is only
        a placeholder and is removed; or ``prompt`` as in the data of trl, a
        text or messages.
    where : str
        For errors.

    Returns
    -------
    list of dict
    """
    if isinstance(record, Mapping) and conversation_name(record) is None:
        return _opening(record.get("prompt"), where)
    found = to_messages(record, where)
    if isinstance(found, list) and found:
        last = found[-1]
        if isinstance(last, Mapping) and last.get("role") == "assistant":
            return found[:-1]
    return found


def _opening(prompt: Any, where: str) -> list[Any]:
    """The messages before the answer, from a prompt's text or messages."""
    if not prompt:
        return []
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    found: list[Any] = to_messages(prompt, f"{where}, prompt")
    return found
