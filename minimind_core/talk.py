"""Talking to a model: one answer, a stream of it, or a conversation.

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

from minimind_core.chat import encode_prompt
from minimind_core.errors import DataError
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
HELP = "/reset begins anew, /exit (or Ctrl-D) ends"


def answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    messages: Messages,
    *,
    max_new_tokens: int = 128,
) -> str:
    """The most likely answer to a conversation.

    Parameters
    ----------
    model : nn.Module
        A `MiniMind`, or a Hugging Face or peft model.
    tokenizer : PreTrainedTokenizerFast
    messages : list of dict
        Ending with what the user said.
    max_new_tokens : int

    Returns
    -------
    str
    """
    return answer_prompts(
        model, tokenizer, [messages], max_new_tokens=max_new_tokens
    )[0]


def stream_answer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    messages: Messages,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """An answer piece by piece, as it is made.

    Parameters
    ----------
    model, tokenizer, messages, max_new_tokens
        As in `answer`.
    temperature, top_p : float
        See `generate.next_token_probs`.
    seed : int

    Yields
    ------
    str
        Never half a character: bytes wait until they are one.

    Raises
    ------
    DataError
        If the conversation leaves no room for an answer.
    """
    ids = encode_prompt(tokenizer, messages)
    limit = position_limit(model)
    if len(ids) >= limit:
        raise DataError(
            f"the conversation has {len(ids)} tokens, the model's memory "
            f"{limit}; begin a new one"
        )
    device = next(model.parameters()).device
    prompt = torch.tensor([ids], device=device)
    generator = torch.Generator(device).manual_seed(seed)
    if not isinstance(model, MiniMind):
        # Other models generate by their own means, in one go.
        out = generate_tokens(
            model, prompt, temperature=temperature, top_p=top_p,
            max_new_tokens=min(max_new_tokens, limit - len(ids)),
        )  # fmt: skip
        yield decode(tokenizer, out[0, len(ids) :].tolist())
        return
    said: list[int] = []
    shown = ""
    for token in stream_tokens(
        model, prompt, max_new_tokens=max_new_tokens, top_p=top_p,
        temperature=temperature, generator=generator,
    ):  # fmt: skip
        said.append(token)
        text = decode(tokenizer, said)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    if (text := decode(tokenizer, said)) != shown:
        yield text[len(shown) :]


def chat_loop(
    folder: str | Path,
    *,
    prompt: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
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
        Answer this one and return.
    max_new_tokens, temperature, top_p, seed
        As in `stream_answer`.
    device : str
        ``auto`` takes a GPU if there is one.
    lines, out : text streams, optional
        Read from and written to; the terminal if not given.

    Returns
    -------
    list of dict
        The conversation.

    Raises
    ------
    CheckpointError, DataError, PrecisionError
    """
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
            model, tokenizer, messages, temperature=temperature,
            top_p=top_p, max_new_tokens=max_new_tokens, seed=seed,
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
            raise DataError(f"what was typed is no text: {error}") from None
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
