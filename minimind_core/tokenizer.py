"""Text to tokens and back: byte-level BPE with ChatML's special tokens.

    from minimind_core.tokenizer import encode_text, train_tokenizer
    tokenizer = train_tokenizer(["One day ...", ...], vocab_size=1024)
    encode_text(tokenizer, "One day")              # [356, 412]

The result is a `transformers.PreTrainedTokenizerFast`, so everything that
takes one takes it. Byte-level means that any text can be encoded; special
tokens are only ever put in by their id: the string ``<|im_end|>`` in a text
is a handful of ordinary tokens, never the end of a turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
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

PAD, BOS, EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# MiniMind-3's tokenizer has these at the ids 0 to 2, its others elsewhere.
SPECIAL_TOKENS = (PAD, BOS, EOS)
MARKERS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)  # fmt: skip
BYTES = 256
SMALLEST = BYTES + len(SPECIAL_TOKENS) + len(MARKERS)
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}
{{- messages[0].content + '\\n\\n' }}
{%- endif %}
{{- '# Tools\\n' }}
{%- for tool in tools %}
{{- '\\n' + (tool | tojson) }}
{%- endfor %}
{{- '\\n\\nTo use one, answer with\\n<tool_call>\\n{"name": ..., ' }}
{{- '"arguments": ...}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
{{- '<|im_start|>user' }}
{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and message.reasoning_content %}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{{- '\\n' if message.content or not loop.first else '' }}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- call.arguments if call.arguments is string
    else (call.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}
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
    """Learn byte-pair merges from texts.

    Parameters
    ----------
    texts : iterable of str
        Read once, to the end. The same texts give the same tokenizer.
    vocab_size : int
        At most so many tokens: 256 bytes, the special tokens and what is
        merged. Fewer if the texts have nothing more to merge.
    out : path, optional
        Also write it there; must be new.

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


class _Counted:
    """Texts on their way to the trainer, and how much there was."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.characters = texts, 0

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            self.characters += len(text)
            yield text


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, folder: str | Path
) -> None:
    """Write the tokenizer's files into a folder.

    The class is written as ``PreTrainedTokenizerFast``: another name makes
    some readers build other ids without a word.
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
    """Read a tokenizer folder: ours, a run's, an export's or upstream's.

    Raises
    ------
    CheckpointError
        If there is none, it is damaged, or its special tokens are not at
        the ids 0, 1 and 2 that the models here are built on.
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
    found = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    if found != [0, 1, 2]:
        raise CheckpointError(
            f"{file}: {', '.join(SPECIAL_TOKENS)} must have the ids 0, 1, 2, "
            f"as in MiniMind's tokenizer, not {found}"
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """A short name for exactly this vocabulary and these merges.

    Retrained on other texts, a tokenizer of the same size gives most ids
    another meaning; a model reads them without a word and is lost.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    text = json.dumps(model, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- text to ids -----------------------------------------------------------

_PLAIN: WeakKeyDictionary[Any, Tokenizer] = WeakKeyDictionary()


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """The same merges without a single special token.

    In it ``<|im_end|>`` is a string like any other.
    """
    from tokenizers import Tokenizer

    if tokenizer not in _PLAIN:
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        parts["added_tokens"] = []
        parts["truncation"] = parts["padding"] = None
        parts["post_processor"] = None
        _PLAIN[tokenizer] = Tokenizer.from_str(json.dumps(parts))
    return _PLAIN[tokenizer]


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a text; special tokens' strings in it are plain text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    text : str

    Returns
    -------
    list of int
    """
    return plain_backend(tokenizer).encode(text).ids


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> list[list[int]]:
    """Ids of several documents, each with its begin and end.

    Returns
    -------
    list of list of int
        ``[bos, ..., eos]`` for each text.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = plain_backend(tokenizer).encode_batch_fast(list(texts))
    return [[bos, *one.ids, eos] for one in found]


def encode_document(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> list[int]:
    """Ids of one document, with its begin and end."""
    return encode_documents(tokenizer, [text])[0]


def decode(
    tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]
) -> str:
    """The text of some ids, without begin, end and padding."""
    # Every tokenizer here has them at the ids 0, 1 and 2.
    special = range(len(SPECIAL_TOKENS))
    return str(tokenizer.decode([i for i in ids if i not in special]))
