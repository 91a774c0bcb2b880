"""Encode conversations as token ids, and mark the supervised ones.

    from minimind_core.chat import encode_conversation, encode_prompt
    ids, labels = encode_conversation(tokenizer, [
        {"role": "user", "content": "Where did Mia go?"},
        {"role": "assistant", "content": "Mia went to the lake."},
    ])

Training and answering both follow the chat template of the tokenizer, also if
it is third-party. The ids are those of the template's rendering, except that
the strings of control tokens within a message are encoded as text. The
labels begin where a prompt for the answer would end and include the token
that ends the turn, so that a model is trained on exactly the prompts that it
will be given.

**How the turns of the assistant are found.** A template is a program, and its
output does not say which part of it came from which message. Two ways of
finding out are used here:

1. If the template has ``{% generation %}`` marks, they delimit the turns.
   Marks are trusted only if they agree with the second way on a specimen
   conversation.
2. Otherwise the conversation is rendered again with unique tags around
   the messages of the user, the system and the tools. If removing the tags
   gives the first rendering, they show where each of these messages lies in
   it. A turn begins where the rendering stops following the prompt, which is
   the rendering of the messages so far with a generation prompt. It ends
   before the header of the next message.

Both work for templates that render earlier turns differently as the
conversation goes on, as Qwen3's does when it removes earlier reasoning. If a
turn cannot be delimited with certainty, the conversation is refused.
"""

from __future__ import annotations

import json
import re
import reprlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from minimind_core.errors import DataError
from minimind_core.tokenizer import Vocabulary, special_ids, vocabulary

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

ROLES = ("system", "user", "assistant", "tool")
IGNORE_INDEX = -100

Message = dict[str, Any]
Span = tuple[int, int]
Marks = tuple[str, str] | None
_Layout = tuple[str, list[Span], Marks]


class NoSupervisedTokens(DataError):
    """A conversation has no supervised tokens."""


class EncodedConversation(NamedTuple):
    """Ids, and for each its label: the id where it is supervised, or -100."""

    input_ids: list[int]
    labels: list[int]


def validate_messages(
    messages: Any, where: str, *, answered: bool = True
) -> None:
    """Check the form of a conversation.

    Parameters
    ----------
    messages : list of dict
        Each with ``role`` and ``content``. The assistant's may also have
        ``reasoning_content`` and ``tool_calls``.
    where : str
        Location to name in errors, ideally the file and line.
    answered : bool
        Whether an assistant message is required.

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
            raise DataError(
                f"{at}: expected an object, found {reprlib.repr(message)}"
            )
        role = message.get("role")
        if role not in ROLES:
            raise DataError(
                f"{at}: role must be one of {', '.join(ROLES)}, not "
                f"{reprlib.repr(role)}"
            )
        content = message.get("content")
        calls = _tool_calls(message, at)
        if calls and role != "assistant":
            raise DataError(
                f"{at}: only the assistant calls tools, not the {role}"
            )
        if not isinstance(content, str) and not (content is None and calls):
            raise DataError(
                f"{at}: content must be text, not {reprlib.repr(content)}"
            )
        reasoning = message.get("reasoning_content")
        if not isinstance(reasoning, str | None):
            raise DataError(f"{at}: reasoning_content must be text")
        _tools(message, at)
    if answered and all(m["role"] != "assistant" for m in messages):
        raise DataError(f"{where}: no assistant message to train on")


def _from_json(message: Message, key: str, at: str) -> list[Any]:
    """Parse a list that MiniMind's data stores as a JSON string."""
    value = message.get(key) or []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{at}: {key} is not JSON ({error.msg})"
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{at}: {key} is not readable JSON ({error})"
            ) from None
    if not isinstance(value, list):
        raise DataError(f"{at}: {key} must be a list")
    return value


def _tool_calls(message: Message, at: str) -> list[Message]:
    """Tool calls, each in the form that chat templates expect."""
    calls = []
    for call in _from_json(message, "tool_calls", at):
        if isinstance(call, dict) and "name" in call:
            call = {"type": "function", "function": call}
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or "name" not in function:
            raise DataError(f"{at}: a tool call has no name")
        if not isinstance(function["name"], str):
            raise DataError(f"{at}: the name of a tool call must be text")
        calls.append(call)
    return calls


def _tools(message: Message, at: str) -> list[Any]:
    return _from_json(message, "tools", at)


def normalise(messages: Sequence[Message]) -> tuple[list[Message], list[Any]]:
    """Convert messages to the form that chat templates expect.

    Parameters
    ----------
    messages : sequence of dict
        ``tools`` and ``tool_calls`` may be JSON strings, as in MiniMind's
        data.

    Returns
    -------
    messages, tools : list
        What ``apply_chat_template(messages, tools=tools)`` expects.
    """
    plain: list[Message] = []
    tools: list[Any] = []
    for number, message in enumerate(messages, 1):
        at = f"message {number}"
        tools = tools or _tools(message, at)
        kept = {
            key: value
            for key, value in message.items()
            if value is not None and key not in ("tools", "tool_calls")
        }
        kept.setdefault("content", "")
        if calls := _tool_calls(message, at):
            kept["tool_calls"] = calls
        plain.append(kept)
    return plain, tools


# --- control tokens within messages ----------------------------------------


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            if isinstance(key, str):
                yield key
            yield from _strings(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _strings(one)


def _unused(text: str) -> Iterator[str]:
    """Yield characters that do not occur in a text, noncharacters first.

    Unicode reserves the noncharacters for such internal use. If a text
    contains even those, private-use characters follow.
    """
    reserved = chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE))
    return (chr(one) for one in reserved if chr(one) not in text)


class _Written(NamedTuple):
    """A conversation in which the strings of control tokens are marked.

    Attributes
    ----------
    messages, tools : list
    marks : (str, str) or None
        The characters around each such string; None if there are none.
    spare : tuple of str
        Three more characters that occur nowhere in the conversation.
    """

    messages: list[Message]
    tools: list[Any]
    marks: Marks
    spare: tuple[str, str, str]


def _mark(
    known: Vocabulary,
    messages: list[Message],
    tools: list[Any],
) -> _Written:
    """Mark the strings of control tokens within messages.

    A rendering mixes the template's text with the messages'. The marks
    travel through the template and show which control tokens are not its
    own. This is the method of transformers' ``sanitize_control_tokens``,
    which older versions do not have and which gives no offsets.
    """
    text = "\0".join(chain(_strings(messages), _strings(tools)))
    unused = _unused(text)
    opening, closing, *spare = (next(unused) for _ in range(5))
    pattern = known.pattern
    if not pattern.search(text):
        return _Written(messages, tools, None, tuple(spare))  # type: ignore

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(f"{opening}\\g<0>{closing}", value)
        if isinstance(value, dict):
            return {marked(key): marked(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [marked(one) for one in value]
        return value

    changed = [
        {"role": message["role"]}
        | {k: marked(v) for k, v in message.items() if k != "role"}
        for message in messages
    ]
    return _Written(
        changed, marked(tools), (opening, closing), tuple(spare)  # type: ignore
    )


class _Piece(NamedTuple):
    """A stretch of a rendering that was encoded on its own."""

    start: int  # in characters
    end: int
    first: int  # in tokens
    encoding: Encoding
    prefix: tuple[int, int]  # characters and tokens that were put in front


class _Encoded:
    """Ids of a rendering, and their positions in the text."""

    def __init__(self, known: Vocabulary, text: str) -> None:
        self.known, self.text = known, text
        self.ids: list[int] = []
        self.pieces: list[_Piece] = []

    def add(self, backend: Tokenizer, start: int, end: int) -> list[int]:
        """Encode a stretch of the text; returns its ids."""
        text = self.text[start:end]
        if start:
            # Some tokenizers put a space in front of any text. A line break
            # in front of the stretch keeps them from it and is then taken
            # off. transformers does the same.
            newline = backend.encode("\n").ids
            found = backend.encode("\n" + text)
            if found.ids[: len(newline)] == newline:
                return self.take(found, start, end, (1, len(newline)))
        return self.take(backend.encode(text), start, end)

    def take(
        self,
        found: Encoding,
        start: int = 0,
        end: int | None = None,
        prefix: tuple[int, int] = (0, 0),
    ) -> list[int]:
        """Append an encoded stretch of the text."""
        end = len(self.text) if end is None else end
        if self.known.normalises_control:
            text = "\n" * prefix[0] + self.text[start:end]
            _refuse_forged(self.known, found, text)
        ids = found.ids[prefix[1] :] if prefix[1] else found.ids
        piece = _Piece(start, end, len(self.ids), found, prefix)
        self.pieces.append(piece)
        self.ids += ids
        return ids

    def before(self, place: int) -> int:
        """Count the tokens that begin before a character of the text."""
        for start, end, first, encoding, (characters, tokens) in self.pieces:
            if place >= end:
                continue
            if place <= start:
                return first
            inside = place - start + characters
            token = encoding.char_to_token(inside)
            if token is None:  # the tokenizer dropped this character
                begins = [begin for begin, _ in encoding.offsets]
                token = bisect_left(begins, inside)
            elif (encoding.token_to_chars(token) or (0,))[0] < inside:
                token += 1
            return first + token - tokens
        return len(self.ids)


def _encode(
    known: Vocabulary, text: str, marks: Marks
) -> _Encoded:
    """Encode a rendering, with the marked strings as plain text."""
    encoded = _Encoded(known, text)
    if marks is None:
        encoded.add(known.full, 0, len(text))
        return encoded
    opening, closing = marks
    pattern = re.compile(
        f"{opening}({known.pattern.pattern}){closing}|[{opening}{closing}]"
    )
    place = 0
    for match in pattern.finditer(text):
        if match.start() > place:
            encoded.add(known.full, place, match.start())
        place = match.end()
        # A template that splits a text can leave half of a pair of marks,
        # which still keeps its two sides apart.
        if token := match[1]:
            if known.control[token] in encoded.add(
                known.bare, *match.span(1)
            ):
                raise DataError(
                    f"{token!r} occurs in a message, and the tokenizer has "
                    "no other way to write it than the control token; "
                    "remove it from the message"
                )
    if place < len(text):
        encoded.add(known.full, place, len(text))
    return encoded


def _refuse_forged(known: Vocabulary, found: Any, text: str) -> None:
    """Refuse text that the normaliser turns into a control token."""
    names = {token_id: name for name, token_id in known.control.items()}
    for token_id, (begin, end) in zip(found.ids, found.offsets, strict=True):
        name = names.get(token_id)
        if name is not None and text[begin:end].strip() != name.strip():
            raise DataError(
                f"{text[begin:end]!r} occurs in a message, and the "
                f"tokenizer's normaliser makes the control token {name!r} "
                "of it; remove it from the message"
            )


# --- rendering and the properties of a template ----------------------------


def _render(
    tokenizer: PreTrainedTokenizerFast,
    messages: list[Message],
    tools: list[Any],
    *,
    prompt: bool = False,
    marks: bool = False,
) -> tuple[str, list[Span]]:
    """Render messages, with the ``{% generation %}`` spans if requested."""
    from transformers.utils.chat_template_utils import render_jinja_template

    names: dict[str, Any] = dict(tokenizer.special_tokens_map)
    try:
        found: Any = render_jinja_template(
            conversations=[messages],
            tools=tools or None,
            chat_template=_template(tokenizer, tools),
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt,
            **names,
        )
    except ImportError:
        raise
    except Exception as error:  # a template may raise anything
        reason = str(error) or repr(error)
        raise DataError(
            f"the tokenizer's chat template refuses the messages: {reason}"
        ) from error
    texts, spans = found
    return texts[0], spans[0] if marks else []


def _template(
    tokenizer: PreTrainedTokenizerFast, tools: list[Any]
) -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            "the tokenizer has no chat template, so conversations cannot be "
            "encoded; set tokenizer.chat_template"
        )
    return str(tokenizer.get_chat_template(tools=tools or None))


class _Dialect(NamedTuple):
    """Properties of a chat template, found by rendering a specimen.

    Attributes
    ----------
    end : str
        The control token that ends the last turn; empty if none does.
    problem : str
        Why conversations cannot be encoded for training; empty if they can.
    optional : int
        How many of the last characters of a prompt the template leaves out
        before some turns, such as an empty reasoning block before a turn
        that has its own.
    marked : bool
        Whether its ``{% generation %}`` marks delimit the turns.
    """

    end: str
    problem: str
    optional: int = 0
    marked: bool = False


REMEDY = (
    "; set tokenizer.chat_template to one that does, or that has "
    "{% generation %} marks"
)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def _dialect(
    tokenizer: PreTrainedTokenizerFast, known: Vocabulary, tools: list[Any]
) -> _Dialect:
    source = _template(tokenizer, tools)
    key = source, tokenizer.bos_token, tokenizer.eos_token
    if key not in known.templates:
        try:
            found = _specimen(tokenizer, known, source)
        except DataError as error:
            found = _Dialect("", str(error))
        known.templates[key] = found
    dialect = known.templates[key]
    assert isinstance(dialect, _Dialect)
    return dialect


def _specimen(
    tokenizer: PreTrainedTokenizerFast, known: Vocabulary, source: str
) -> _Dialect:
    control = known.pattern
    asked, answered, again = ("\ufdd0", "\ufdd1", "\ufdd2")
    user = {"role": "user", "content": asked}
    assistant = {"role": "assistant", "content": answered}
    text = _render(tokenizer, [user], [], prompt=True)[0]
    _, found, prompt = text.partition(asked)
    if not found:
        raise DataError("the chat template does not render a user's message")
    text = _render(tokenizer, [user, assistant], [])[0]
    _, _, turn = text.partition(asked)
    _, found, after = turn.partition(answered)
    ended = control.search(after)
    if not found or not ended:
        raise DataError(
            "the chat template does not end the assistant's turn with a "
            "control token, so a model could not learn to stop" + REMEDY
        )
    end = ended.group()
    if not turn.startswith(prompt):
        differing = prompt[_shared(turn, prompt) :]
        return _Dialect(end, (
            "the chat template's generation prompt ends with "
            f"{differing!r}, with which its answers do not "
            "begin, so a model would be asked in another way than it was "
            "trained" + REMEDY
        ))  # fmt: skip
    # Turns that look different: an earlier one, and one with reasoning.
    marked = _MARKS.search(source) is not None
    optional = 0
    for messages in (
        [user, assistant],
        [user, assistant, {"role": "user", "content": again}],
        [user, assistant | {"reasoning_content": again}],
    ):
        try:
            text, spans = _render(tokenizer, messages, [], marks=marked)
        except DataError:  # some templates know no reasoning
            continue
        before, _, turn = text.partition(asked)
        shared = _shared(turn, prompt)
        optional = max(optional, len(prompt) - shared)
        ended = control.search(text, text.find(answered))
        start = len(before) + len(asked) + shared
        marked = marked and ended is not None and (
            [(start, ended.end())] == _trimmed(text, spans)
        )  # fmt: skip
    return _Dialect(end, "", optional, marked)


def _shared(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    limit = min(len(one), len(other))
    return next((i for i, (a, b) in pairs if a != b), limit)


def _trimmed(text: str, spans: Sequence[Span]) -> list[Span]:
    """Remove a line break at the end of marked spans."""
    return [
        (start, start + len(text[start:end].rstrip())) for start, end in spans
    ]


def stop_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids of the tokens that end an answer.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    list of int
        The tokenizer's ``eos_token_id``. If its chat template ends the
        assistant's turn with another token, such as Llama 3's
        ``<|eot_id|>``, that one comes first.
    """
    known = vocabulary(tokenizer)
    found = [special_ids(tokenizer).eos]
    if tokenizer.chat_template is not None:
        end = _dialect(tokenizer, known, []).end
        if end and known.control[end] not in found:
            found.insert(0, known.control[end])
    return found


# --- finding the assistant's turns -----------------------------------------


def _turns(
    tokenizer: PreTrainedTokenizerFast,
    known: Vocabulary,
    dialect: _Dialect,
    written: _Written,
) -> tuple[str, list[Span]]:
    """Return the rendering and the span of each assistant turn.

    A turn begins after its prompt and ends after its end token.
    """
    messages, tools = written.messages, written.tools
    text, spans = _render(tokenizer, messages, tools, marks=dialect.marked)
    count = sum(message["role"] == "assistant" for message in messages)
    if dialect.marked:
        spans = _trimmed(text, spans)
        ends = tuple(known.control)
        if len(spans) == count and all(
            text[start:end].endswith(ends) for start, end in spans
        ):
            return text, spans
    return text, _tagged_turns(tokenizer, known, dialect, written, text)


def _tagged_turns(
    tokenizer: PreTrainedTokenizerFast,
    known: Vocabulary,
    dialect: _Dialect,
    written: _Written,
    text: str,
) -> list[Span]:
    """Find the turns by rendering with tags around all other messages."""
    messages, tools = written.messages, written.tools
    opening, closing, ending = written.spare
    tag = re.compile(f"([{opening}{closing}])([0-9]+){ending}")

    def framed(number: int, message: Message, content: str) -> Message:
        # Inside the spaces around a text, which templates may strip.
        inner = content.strip()
        lead = content[: len(content) - len(content.lstrip())]
        trail = content[len(lead) + len(inner) :]
        return message | {
            "content": f"{lead}{opening}{number}{ending}{inner}"
            f"{closing}{number}{ending}{trail}"
        }

    others = [
        message if message["role"] == "assistant"
        else framed(number, message, message["content"])
        for number, message in enumerate(messages)
    ]  # fmt: skip
    places = _tag_places(
        tag, _render(tokenizer, others, tools)[0], text
    )
    plain = [
        framed(number, {"role": "assistant"}, "")
        if message["role"] == "assistant" else message
        for number, message in enumerate(others)
    ]  # fmt: skip
    skeleton = _render(tokenizer, plain, tools)[0]
    gaps = _gaps(tag, closing, skeleton)
    control = known.pattern
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        at = f"message {number + 1}"
        if number and messages[number - 1]["role"] == "assistant":
            raise DataError(
                f"{at}: with this chat template, two messages of the "
                "assistant in a row cannot be told apart; join them"
            )
        prompt = _render(tokenizer, others[:number], tools, prompt=True)[0]
        start = 0
        if number:
            start = places[closing, number - 1]
            prompt = prompt.rpartition(f"{closing}{number - 1}{ending}")[2]
        shared = _shared(text[start : start + len(prompt)], prompt)
        if shared < len(prompt) - dialect.optional:
            raise DataError(
                f"{at}: the chat template renders it after "
                f"{text[start : start + len(prompt)]!r}, but asks for it "
                f"with {prompt!r}, so training would not fit the answering"
                + REMEDY
            )
        start += shared
        # The end token is followed by the header of the next message.
        gap, following = gaps[number]
        ended = control.search(gap)
        last = number + 1 == len(messages)
        if ended is None or following != (None if last else number + 1):
            # Nothing ends it, or the template changes the order.
            raise DataError(
                f"{at}: the chat template does not show where it ends"
                + REMEDY
            )
        header = gap[ended.end() :]
        end = len(text) if last else places[opening, number + 1]
        turn = text[start:end].removesuffix(header)
        if len(turn) + len(header) != end - start or not turn.endswith(
            tuple(known.control)
        ):
            raise DataError(
                f"{at}: the chat template does not end it as it ends other "
                "turns of the assistant" + REMEDY
            )
        end = start + len(turn)
        spans.append((start, end))
    return spans


def _tag_places(
    tag: re.Pattern[str], tagged: str, text: str
) -> dict[tuple[str, int], int]:
    """Map the tags of a tagged rendering to positions in the untagged one."""
    if tag.sub("", tagged) != text:
        raise DataError(
            "the chat template changes what the messages say, so where the "
            "assistant's turns begin cannot be told" + REMEDY
        )
    places: dict[tuple[str, int], int] = {}
    removed = 0
    for match in tag.finditer(tagged):
        places[match[1], int(match[2])] = match.start() - removed
        removed += len(match[0])
    return places


def _gaps(
    tag: re.Pattern[str], closing: str, skeleton: str
) -> dict[int, tuple[str, int | None]]:
    """The text after each message, and which message follows it."""
    found: dict[int, tuple[str, int | None]] = {}
    tags = list(tag.finditer(skeleton))
    for match, following in zip(tags, [*tags[1:], None], strict=True):
        if match[1] == closing:
            end = following.start() if following else len(skeleton)
            found[int(match[2])] = (
                skeleton[match.end() : end],
                int(following[2]) if following else None,
            )
    return found


# --- ids and labels --------------------------------------------------------


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    *,
    max_length: int | None = None,
) -> EncodedConversation:
    """Encode a conversation with its labels, by the tokenizer's template.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        With any chat template; see the top of this module for how the turns
        of the assistant are found in what it renders.
    messages : sequence of dict
        See `validate_messages`.
    max_length : int, optional
        In tokens. Turns at the end that do not fit are left out whole,
        because half an answer would teach the model to stop in the middle,
        or never.

    Returns
    -------
    EncodedConversation
        The ids are those of ``apply_chat_template``. If a message contains
        the string of a control token, they are those of
        ``apply_chat_template(..., sanitize_control_tokens=True)``. Each turn
        of the assistant is supervised from the end of its prompt, which is
        what `encode_prompt` gives for the messages before it, up to and
        including the token that ends it. A token that is partly in
        the prompt is not supervised.

    Raises
    ------
    DataError
        If a message does not have the right form, the template refuses the
        conversation, or its rendering does not show where a turn of the
        assistant begins or ends.
    NoSupervisedTokens
        If not even the first answer fits, or there is none.
    """
    known = vocabulary(tokenizer)
    text, spans, marks = _laid_out(tokenizer, known, messages)
    return _labelled(_encode(known, text, marks), spans, max_length)


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Sequence[Message]],
    *,
    max_length: int | None = None,
) -> list[EncodedConversation | None]:
    """Encode several conversations, faster than one by one.

    Parameters
    ----------
    tokenizer, max_length
        As in `encode_conversation`.
    conversations : sequence of sequence of dict

    Returns
    -------
    list of EncodedConversation or None
        None for a conversation without supervised tokens.

    Raises
    ------
    DataError
        As in `encode_conversation`.
    """
    known = vocabulary(tokenizer)
    layouts: list[_Layout | None] = []
    for messages in conversations:
        try:
            layouts.append(_laid_out(tokenizer, known, messages))
        except NoSupervisedTokens:
            layouts.append(None)
    clean = [one[0] for one in layouts if one and one[2] is None]
    encodings = iter(known.full.encode_batch(clean))
    found: list[EncodedConversation | None] = []
    for one in layouts:
        if one is None:
            found.append(None)
            continue
        text, spans, marks = one
        if marks is None:
            encoded = _Encoded(known, text)
            encoded.take(next(encodings))
        else:
            encoded = _encode(known, text, marks)
        try:
            found.append(_labelled(encoded, spans, max_length))
        except NoSupervisedTokens:
            found.append(None)
    return found


def _laid_out(
    tokenizer: PreTrainedTokenizerFast,
    known: Vocabulary,
    messages: Sequence[Message],
) -> _Layout:
    """Render a conversation; return it, the answers' spans and the marks."""
    validate_messages(list(messages), "conversation", answered=False)
    plain, tools = normalise(messages)
    if all(message["role"] != "assistant" for message in plain):
        raise NoSupervisedTokens("there is no assistant message")
    dialect = _dialect(tokenizer, known, tools)
    if dialect.problem:
        raise DataError(dialect.problem)
    written = _mark(known, plain, tools)
    text, spans = _turns(tokenizer, known, dialect, written)
    return text, spans, written.marks


def _labelled(
    encoded: _Encoded, spans: Sequence[Span], max_length: int | None
) -> EncodedConversation:
    """Label the assistant's turns; only whole turns are kept."""
    ids, text = encoded.ids, encoded.text
    labels = [IGNORE_INDEX] * len(ids)
    ends = []
    for start, end in spans:
        first, stop = encoded.before(start), encoded.before(end)
        labels[first:stop] = ids[first:stop]
        ends.append((stop, end))
    length = len(ids)
    if max_length is not None and length > max_length:
        fitting = [one for one in ends if one[0] <= max_length]
        if not fitting:
            raise NoSupervisedTokens(
                f"the first answer ends at token {ends[0][0]}, beyond "
                f"{max_length}"
            )
        # Keep the line break after the last turn if there is room.
        end = fitting[-1][1]
        space = len(text) - len(text[end:].lstrip())
        length = min(encoded.before(space), max_length)
    return EncodedConversation(ids[:length], labels[:length])


def encode_prompt(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> list[int]:
    """Encode a conversation as a prompt for the assistant.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    messages : sequence of dict
        See `validate_messages`.

    Returns
    -------
    list of int
        Those of ``apply_chat_template(..., add_generation_prompt=True)``,
        with control tokens in the messages as text. With our own template
        they end with ``<|im_start|>assistant`` and a line break.

    Raises
    ------
    DataError
        If a message does not have the right form, or the template refuses
        the conversation.
    """
    validate_messages(list(messages), "prompt", answered=False)
    plain, tools = normalise(messages)
    known = vocabulary(tokenizer)
    written = _mark(known, plain, tools)
    text, _ = _render(
        tokenizer, written.messages, written.tools, prompt=True
    )
    ids = _encode(known, text, written.marks).ids
    if not ids:
        raise DataError("the chat template renders nothing" + REMEDY)
    return ids
