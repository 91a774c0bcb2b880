"""Text to tokens and back: byte-level BPE with ChatML's special tokens.

    from minimind_core.tokenizer import encode_text, train_tokenizer
    tokenizer = train_tokenizer(["One day ...", ...], vocab_size=1024)
    encode_text(tokenizer, "One day")              # [356, 412]

The result is a `transformers.PreTrainedTokenizerFast`, so it works wherever
one is expected. Because the tokenizer is byte-level, it can encode any text.
Control tokens only ever enter a sequence by their id: the string
``<|im_end|>`` in a text becomes a handful of ordinary tokens and never ends
a turn.

Tokenizers that were made elsewhere, such as Qwen's or Llama's, are read as
well. Nothing here assumes that a special token has a certain id or name;
`special_ids` and `control_tokens` look them up.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from minimind_core.errors import CheckpointError, ConfigError, DataError
from minimind_core.files import (
    atomic_folder,
    read_json,
    require_new,
    write_json,
    writing,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# The special tokens of the tokenizers that are trained here. MiniMind-3's
# tokenizer has them too, at the same ids 0 to 2.
PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, BOS, EOS)
MARKERS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
BYTES = 256
SMALLEST = BYTES + len(SPECIAL_TOKENS) + len(MARKERS)
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# The `generation` marks change nothing in what is rendered. They tell trl
# and `apply_chat_template(..., return_assistant_tokens_mask=True)` which part
# of it the assistant writes.
CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}
{{- messages[0]['content'] + '\\n\\n' }}
{%- endif %}
{{- '# Tools\\n' }}
{%- for tool in tools %}
{{- '\\n' + (tool | tojson) }}
{%- endfor %}
{{- '\\n\\nTo use one, answer with\\n<tool_call>\\n{"name": ..., ' }}
{{- '"arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- set role = message['role'] %}
{%- if role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{%- if 'reasoning_content' in message and message['reasoning_content'] %}
{{- '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message['content'] or '' }}
{%- if 'tool_calls' in message %}
{%- for call in message['tool_calls'] or [] %}
{%- set call = call['function'] or call %}
{{- '\\n' if message['content'] or not loop.first else '' }}
{{- '<tool_call>\\n{"name": "' + call['name'] + '", "arguments": ' }}
{{- call['arguments'] if call['arguments'] is string
    else (call['arguments'] | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- elif role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}
{{- '<|im_start|>user' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- elif not (tools and loop.first and role == 'system') %}
{{- '<|im_start|>' + role + '\\n' + (message['content'] or '') }}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 1024,
    *,
    out: str | Path | None = None,
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on texts.

    Parameters
    ----------
    texts : iterable of str
        Read once, to the end. The same texts give the same tokenizer.
    vocab_size : int
        The largest size allowed: 256 bytes, the special tokens and the
        merges. The result is smaller if the texts have nothing more to
        merge.
    out : path, optional
        A new folder to write the tokenizer to.

    Returns
    -------
    PreTrainedTokenizerFast

    Raises
    ------
    ConfigError
        If `vocab_size` has no room for the bytes.
    DataError
        If there is no text.
    OutputError
        If `out` exists.

    Notes
    -----
    Byte-level BPE as in GPT-2 (Radford et al., 2019), after Sennrich et
    al., arXiv:1508.07909.
    """
    from tokenizers import Tokenizer, decoders, models
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small: {BYTES} bytes and "
            f"{SMALLEST - BYTES} special tokens need {SMALLEST}"
        )
    if out is not None:
        require_new(out)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *MARKERS],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    counted = _Counted(texts)
    backend.train_from_iterator(counted, trainer)
    if not counted.characters:
        raise DataError("no text to train a tokenizer on")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    if out is not None:
        with atomic_folder(out) as folder:
            save_tokenizer(tokenizer, folder)
    return tokenizer


LONGEST_WORD = 1000
"""Longest word, in characters, from which merges are learnt. The time for one
grows with the square of its length; what is longer is no word but data."""
_RUN = re.compile(rf"\S{{1,{LONGEST_WORD}}}|\s{{1,{LONGEST_WORD}}}")


def _short_words(text: str) -> Iterator[str]:
    """Cut a text where a word, or the space between two, is too long."""
    start = 0
    if len(text) > LONGEST_WORD:
        for run in _RUN.finditer(text):
            if run.end() - run.start() == LONGEST_WORD:
                yield text[start : run.end()]
                start = run.end()
    yield text[start:]


class _Counted:
    """Passes texts on to the trainer and counts them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.characters = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield from _short_words(text)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, folder: str | Path
) -> None:
    """Write the tokenizer's files into a folder.

    The class is written as ``PreTrainedTokenizerFast``, because under some
    other names transformers would silently build a tokenizer that gives
    other ids.
    """
    folder = Path(folder)
    with writing(folder):
        try:
            tokenizer.save_pretrained(folder)
        except OSError:
            raise
        except Exception as error:  # the backend raises bare Exceptions
            raise OSError(str(error)) from error
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("auto_map", None)
    if isinstance(config.get("extra_special_tokens"), list):
        # Version 4 fails on this list of version 5, which reads both names.
        extra = config.pop("extra_special_tokens")
        config["additional_special_tokens"] = extra
    # Without it, version 4 adds token_type_ids, which `generate` refuses.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    write_json(path, config)


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder: a run, an export or a third-party one.

    Parameters
    ----------
    folder : path
        With a ``tokenizer.json``, as transformers writes it.

    Returns
    -------
    PreTrainedTokenizerFast
        Its special tokens keep the ids they have in the file; see
        `special_ids`. If it has no chat template but our template's tokens,
        it gets ours.

    Raises
    ------
    CheckpointError
        If there is no such file, it is damaged, or it defines no end token.
    """
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    file = folder / "tokenizer.json"
    if not file.exists():
        raise CheckpointError(f"{file}: no such file, so no tokenizer here")
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the backend raises bare Exceptions
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise CheckpointError(
            f"{file}: damaged or not a tokenizer ({reason[:120]})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: names no eos_token, so a "
            "model could not end a text; add one, for example "
            f'"eos_token": "{EOS}"'
        )
    if tokenizer.chat_template is None:
        if {BOS, EOS} <= set(tokenizer.get_added_vocab()):
            tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a digest of all that decides which ids a text is given.

    A tokenizer that is trained again on other texts gives most ids another
    meaning. A model would read those ids without an error and produce
    nonsense, so runs keep this digest and compare it. It includes the added
    tokens and the chat template, but not truncation and padding, which are
    settings of a call.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = {
        name: value
        for name, value in parts.items()
        if name not in ("truncation", "padding")
    }
    text = json.dumps([parts, tokenizer.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- special and control tokens --------------------------------------------


class SpecialIds(NamedTuple):
    """The ids that frame a text.

    Attributes
    ----------
    bos, eos, pad : int
        Before a text, after it, and on padding.
    """

    bos: int
    eos: int
    pad: int


def special_ids(tokenizer: PreTrainedTokenizerFast) -> SpecialIds:
    """Return the ids of a tokenizer's begin, end and padding tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    SpecialIds
        Where a tokenizer defines no begin token (Qwen's does not) or no
        padding token (Llama 3's does not), the end token is used. Padding
        never enters the loss, so the choice of its id changes nothing.

    Raises
    ------
    DataError
        If the tokenizer names no end token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            "the tokenizer names no eos_token, so a text could not end; set "
            "tokenizer.eos_token"
        )
    bos, pad = tokenizer.bos_token_id, tokenizer.pad_token_id
    return SpecialIds(
        eos if bos is None else bos, eos, eos if pad is None else pad
    )


def control_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the tokens that only a template or a program may write.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    dict of str to int
        The special tokens, and of the other added tokens those that the
        tokenizer lists in ``chat_control_tokens`` or, without such a list,
        those that its chat template contains. This is the rule of
        transformers' ``sanitize_control_tokens``. Other added tokens, such
        as words that a user added, are ordinary text.
    """
    return dict(vocabulary(tokenizer).control)


def _control(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    listed = getattr(tokenizer, "chat_control_tokens", None)
    templates = tokenizer.chat_template or ""
    if isinstance(templates, dict):
        named = "\0".join(map(_literals, templates.values()))
    else:
        named = _literals(templates)
    found = {}
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    for token_id, token in added.items():
        text = token.content
        if listed is not None:
            control = text in listed
        else:
            control = text in named and not text.isspace()
        if token.special or control:
            found[text] = token_id
    return found


@lru_cache
def _literals(template: str) -> str:
    """Return the literal text of a chat template, without its code."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), True)
            return nodes.Scope(body, lineno=line)

    try:
        tree = ImmutableSandboxedEnvironment(
            extensions=[Generation, loopcontrols]
        ).parse(template)
    except Exception as error:
        raise DataError(
            f"the tokenizer's chat template cannot be read: {error}"
        ) from error
    found = {one.data for one in tree.find_all(nodes.TemplateData)}
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            found.add(constant.value)
    # Joined by a character that no token contains, so that none is found
    # across two of them.
    return "\0".join(found)


# --- text to ids -----------------------------------------------------------


class Vocabulary:
    """A tokenizer's merges, with all, some or none of its added tokens.

    Attributes
    ----------
    control : dict of str to int
        See `control_tokens`.
    pattern : re.Pattern
        Finds any control token.
    full : tokenizers.Tokenizer
        Reads every added token, as the tokenizer itself does. Its offsets
        count the spaces before a word, which a tokenizer with a
        post-processor may leave out.
    plain : tokenizers.Tokenizer
        Takes control tokens for text and reads the other added tokens.
    bare : tokenizers.Tokenizer
        Takes every added token for text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.control = _control(tokenizer)
        self._serialised = tokenizer.backend_tokenizer.to_str()
        self.templates: dict[Any, Any] = {}  # for the module `chat`

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Match any control token; the longer one where two start alike."""
        longest = sorted(self.control, key=len, reverse=True)
        # Without tokens, it must never match.
        return re.compile("|".join(map(re.escape, longest)) or "(?!)")

    def _keeping(self, kept: Any) -> Tokenizer:
        from tokenizers import Tokenizer

        parts = json.loads(self._serialised)
        parts["added_tokens"] = [
            token for token in parts["added_tokens"] if kept(token)
        ]
        parts["truncation"] = parts["padding"] = None
        parts["post_processor"] = None
        return Tokenizer.from_str(json.dumps(parts))

    @cached_property
    def full(self) -> Tokenizer:
        return self._keeping(lambda token: True)

    @cached_property
    def plain(self) -> Tokenizer:
        return self._keeping(
            lambda token: token["content"] not in self.control
        )

    @cached_property
    def bare(self) -> Tokenizer:
        return self._keeping(lambda token: False)

    @cached_property
    def normalises_control(self) -> bool:
        """Whether a normaliser may turn other text into a control token."""
        parts = json.loads(self._serialised)
        return parts["normalizer"] is not None and any(
            token["normalized"] and token["content"] in self.control
            for token in parts["added_tokens"]
        )


_VOCABULARIES: WeakKeyDictionary[Any, tuple[Any, Vocabulary]]
_VOCABULARIES = WeakKeyDictionary()


def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    """Return a tokenizer's `Vocabulary`, cached until the tokenizer changes.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    Vocabulary
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    listed = getattr(tokenizer, "chat_control_tokens", None)
    # Tokens can be added at any time, even ones that the merges already
    # have, so that the size of the vocabulary tells nothing.
    now = (
        tokenizer.chat_template,
        listed and tuple(listed),
        [(i, token.content, token.special) for i, token in added.items()],
    )
    known = _VOCABULARIES.get(tokenizer)
    if known is None or known[0] != now:
        known = _VOCABULARIES[tokenizer] = (now, Vocabulary(tokenizer))
    return known[1]


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return the tokenizer's backend without its control tokens.

    It encodes ``<|im_end|>`` like any other string. Ordinary tokens that
    were added to the vocabulary remain.
    """
    return vocabulary(tokenizer).plain


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode a text, treating the strings of control tokens as plain text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    text : str

    Returns
    -------
    list of int
        Those of ``tokenizer(text, add_special_tokens=False)`` if the text
        contains no control token.
    """
    return plain_backend(tokenizer).encode(text).ids


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[list[int]]:
    """Encode several documents, each with a begin and an end token.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    texts : sequence of str

    Returns
    -------
    list of list of int
        ``[bos, ..., eos]`` for each text, by `special_ids`.
    """
    bos, eos, _ = special_ids(tokenizer)
    found = plain_backend(tokenizer).encode_batch_fast(list(texts))
    return [[bos, *one.ids, eos] for one in found]


def encode_document(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> list[int]:
    """Encode one document, with its begin and end token."""
    return encode_documents(tokenizer, [text])[0]


def decode(
    tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]
) -> str:
    """Decode ids to text, leaving out begin, end and padding tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    ids : sequence of int

    Returns
    -------
    str
        Other added tokens, such as ``<think>``, appear in it as text.
    """
    special = set(special_ids(tokenizer))
    return str(tokenizer.decode([i for i in ids if i not in special]))
