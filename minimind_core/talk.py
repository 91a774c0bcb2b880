"""Chat with a model: one answer, a streamed answer, or a conversation.

    from minimind_core.talk import answer, chat_loop
    answer(model, tokenizer, [{"role": "user", "content": "Who are you?"}])
    chat_loop("runs/merged")               # in a terminal
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import nn

from minimind_core.chat import encode_prompt, stop_token_ids
from minimind_core.errors import ConfigError, DataError
from minimind_core.evaluation import answer_prompts
from minimind_core.generate import (
    generate_tokens,
    position_limit,
    stream_tokens,
)
from minimind_core.loading import load_model
from minimind_core.model import MiniMind
from minimind_core.precision import detect_device
from minimind_core.tokenizer import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = list[dict[str, Any]]
HELP = "/reset starts a new conversation, /exit (or Ctrl-D) ends"


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    messages: Messages,
    *,
    max_new_tokens: int = 128,
) -> str:
    """Return the model's answer to a conversation, by greedy decoding.

    Parameters
    ----------
    model : nn.Module
        A `MiniMind`, or a Hugging Face or peft model.
    tokenizer : PreTrainedTokenizerFast
    messages : list of dict
        The conversation so far. Its last message is usually the user's.
    max_new_tokens : int
        Fewer where the model's positions run out.

    Returns
    -------
    str

    Raises
    ------
    DataError
        If the conversation leaves no room for an answer.
    """
    found = answer_prompts(
        model, tokenizer, [messages], max_new_tokens=max_new_tokens
    )[0]
    if found is None:
        _require_room(model, encode_prompt(tokenizer, messages), messages)
    assert found is not None
    return found


def _require_room(
    model: nn.Module, ids: list[int], messages: Messages
) -> None:
    limit = position_limit(model)
    if len(ids) >= limit:
        last = str(messages[-1].get("content"))
        shown = last if len(last) <= 40 else last[:37] + "..."
        raise DataError(
            f"the conversation that ends with {shown!r} has {len(ids)} "
            f"tokens and the model {limit} positions, which leaves no room "
            "for an answer; begin a new conversation or shorten it"
        )


def stream_answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    messages: Messages,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield an answer piece by piece, as it is generated.

    Parameters
    ----------
    model, tokenizer, messages, max_new_tokens
        As in `answer`.
    temperature, top_k, top_p, min_p
        See `generate.next_token_probs`.
    seed : int
        The same seed gives the same answer.

    Yields
    ------
    str
        Complete characters only; the bytes of an incomplete one are held
        back until the rest of it follows.

    Raises
    ------
    DataError
        If the conversation leaves no room for an answer.
    """
    ids = encode_prompt(tokenizer, messages)
    _require_room(model, ids, messages)
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    stops = stop_token_ids(tokenizer)
    if not isinstance(model, MiniMind):
        # Other models use their own generate, which returns all at once.
        room = position_limit(model) - len(ids)
        out = generate_tokens(
            model, prompt, max_new_tokens=min(max_new_tokens, room),
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            eos_token_id=stops, generator=generator,
        )  # fmt: skip
        found = out[0, len(ids) :].tolist()
        if found and found[-1] in stops:
            found.pop()
        yield decode(tokenizer, found)
        return
    generated: list[int] = []
    shown = ""
    for token in stream_tokens(
        model, prompt, max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        eos_token_id=stops, generator=generator,
    ):  # fmt: skip
        generated.append(token)
        text = decode(tokenizer, generated)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    if (text := decode(tokenizer, generated)) != shown:
        yield text[len(shown) :]


def chat_loop(
    folder: str | Path,
    *,
    prompt: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    lines: TextIO | None = None,
    out: TextIO | None = None,
) -> Messages:
    """Talk to a model in the terminal.

    Parameters
    ----------
    folder : path
        A run, a Hugging Face folder or a LoRA adapter.
    prompt : str, optional
        Answer only this prompt, instead of reading input.
    max_new_tokens, temperature
        As in `stream_answer`.
    top_k, top_p, min_p, seed : optional
        As in `stream_answer`, for a temperature above 0. At 0 nothing is
        drawn, and they are refused.
    device : str
        ``auto`` uses a GPU if there is one.
    lines, out : text streams, optional
        Where to read from and write to; the terminal by default.

    Returns
    -------
    list of dict
        The conversation.

    Raises
    ------
    CheckpointError, ConfigError, DataError, PrecisionError
    """
    drawing: dict[str, Any] = {
        name: value
        for name, value in (
            ("top_k", top_k), ("top_p", top_p), ("min_p", min_p),
            ("seed", seed),
        )
        if value is not None
    }  # fmt: skip
    if drawing and temperature == 0:
        raise ConfigError(
            f"{', '.join(drawing)}: no effect at temperature 0, where the "
            "likeliest token is always taken; raise --temperature"
        )
    facts = detect_device(device)
    where = facts.type if device == "auto" else device
    model, tokenizer = load_model(folder, where)
    lines, out = lines or sys.stdin, out or sys.stdout
    messages: Messages = []

    def say(text: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError("the prompt is not UTF-8 text") from None
        messages.append({"role": "user", "content": text})
        pieces = []
        for piece in stream_answer(
            model, tokenizer, messages, max_new_tokens=max_new_tokens,
            temperature=temperature, **drawing,
        ):  # fmt: skip
            pieces.append(piece)
            out.write(piece)
            out.flush()
        out.write("\n")
        messages.append({"role": "assistant", "content": "".join(pieces)})

    if prompt is not None:
        say(prompt)
        return messages
    out.write(f"Talking to {folder}; {HELP}.\n")
    while True:
        out.write("> ")
        out.flush()
        try:
            line = lines.readline()
        except UnicodeDecodeError as error:
            raise DataError(f"the input is not UTF-8 text: {error}") from None
        if not line or line.strip() == "/exit":
            out.write("\n" * (not line))
            return messages
        if line.strip() == "/reset":
            messages.clear()
        elif line.strip():
            try:
                say(line.rstrip("\n").replace("\\n", "\n"))
            except DataError as error:
                out.write(f"{error} (/reset)\n")
                messages.clear()
