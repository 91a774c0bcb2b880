"""Validity and diversity of stories under many sampling settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from minimind_core.book.stages import get_stage
from minimind_core.generate import generate_tokens
from minimind_core.loading import load_model
from minimind_core.microworld import NotInLanguage, read_story
from minimind_core.tokenizer import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minimind_core.model import MiniMind

STORIES = 200
LONGEST = 160

SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.25},
    {"temperature": 0.5},
    {"temperature": 0.75},
    {"temperature": 1.0},
    {"temperature": 1.25},
    {"temperature": 1.5},
    {"temperature": 2.0},
    {"top_p": 0.9},
    {"min_p": 0.05},
    {"temperature": 1.5, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.05},
    {"temperature": 2.0, "top_p": 0.9},
    {"temperature": 2.0, "min_p": 0.05},
    {"repetition_penalty": 1.1},
    {"repetition_penalty": 1.2},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 2.0},
    {"temperature": 0.25, "repetition_penalty": 1.2},
)


def draw_stories(
    model: MiniMind,
    tokenizer: PreTrainedTokenizerFast,
    count: int,
    *,
    seed: int = 0,
    **settings: Any,
) -> list[str]:
    """Sample stories from the begin token.

    Parameters
    ----------
    model, tokenizer
    count : int
        All in one batch.
    seed : int
    **settings
        As in `generate_tokens`.

    Returns
    -------
    list of str
        A story without an end token gets an ellipsis.
    """
    device = next(model.parameters()).device
    eos = tokenizer.eos_token_id
    rows = generate_tokens(
        model, torch.full((count, 1), tokenizer.bos_token_id).to(device),
        max_new_tokens=LONGEST,
        generator=torch.Generator(device).manual_seed(seed),
        **settings,
    ).tolist()  # fmt: skip
    ends = ("" if eos in row else "…" for row in rows)
    return [
        decode(tokenizer, row) + end
        for row, end in zip(rows, ends, strict=True)
    ]


def judge(texts: list[str]) -> dict[str, float]:
    """Judge texts by the microworld's grammar.

    Parameters
    ----------
    texts : list of str

    Returns
    -------
    dict
        ``valid``, the share of valid stories; ``distinct``, the share of
        different texts; ``nats``, the mean negative log-probability of the
        valid ones under the grammar (0 if there are none).
    """
    surprises = []
    for text in texts:
        try:
            surprises.append(-read_story(text).logprob)
        except NotInLanguage:
            continue
    return {
        "valid": len(surprises) / len(texts),
        "distinct": len(set(texts)) / len(texts),
        "nats": sum(surprises) / max(len(surprises), 1),
    }


def sampling(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Sample stories under each of `SETTINGS` and judge them.

    Returns
    -------
    list of dict
        For each ``settings``, ``valid``, ``distinct`` and ``nats`` of
        `judge`, and ``example``, the first text.
    """
    model, tokenizer = load_model(get_stage("pretrain", preset=preset))
    found = []
    for settings in SETTINGS:
        if progress:
            print(f"  {settings}", flush=True)
        texts = draw_stories(model, tokenizer, STORIES, **settings)
        found.append(
            {"settings": settings, **judge(texts), "example": texts[0]}
        )
    return found


STUDIES = {"sampling": sampling}
