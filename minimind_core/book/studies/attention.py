"""Where attention heads attend, for words whose source is known.

    from minimind_core.book.studies.attention import find_recalls, head_hits
    recalls = find_recalls(tokenizer, "trade", "color")
    head_hits(model, recalls)              # (layers, heads), shares

A story of the microworld states a fact and repeats it later. At the token
before the repetition the model must predict the word, and the positions from
which it can copy it are known.
"""

from __future__ import annotations

import copy
from itertools import count as count_up
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from minimind_core.microworld import write_story
from minimind_core.model import MiniMind, RMSNorm
from minimind_core.tokenizer import encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minimind_core.book.studies import Study


class Recalls(NamedTuple):
    """Stories with one position each at which a word is repeated.

    Attributes
    ----------
    input_ids : Tensor of int64, shape (stories, time)
        Padded on the right, which does not affect a causal model.
    at : Tensor of int64, shape (stories,)
        The position before the word's last occurrence, which must predict
        it.
    answers : Tensor of int64, shape (stories,)
        The word's token.
    places : Tensor of bool, shape (stories, time)
        Its earlier occurrences, which a head can attend to.
    """

    input_ids: Tensor
    at: Tensor
    answers: Tensor
    places: Tensor


def find_recalls(
    tokenizer: PreTrainedTokenizerFast,
    plot: str,
    role: str,
    *,
    stories: int = 100,
    seed: int = 7,
) -> Recalls:
    """Find stories of one plot in which a fact is repeated.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    plot, role : str
        As in `Story.state`; stories in which the role's word is not one
        token, or occurs only once, are left out.
    stories : int
        Number of stories.
    seed : int
        Seed of the stories.
    """
    rows: list[list[int]] = []
    answers: list[int] = []
    for index in count_up():
        if len(rows) == stories:
            break
        if index > 60 * stories + 600:
            raise ValueError(f"the plot {plot!r} does not repeat {role!r}")
        story = write_story(seed, index)
        if story.state["plot"] != plot or role not in story.state:
            continue
        word = encode_text(tokenizer, f" {story.state[role]}")
        ids = encode_text(tokenizer, story.text)
        if len(word) == 1 and ids.count(word[0]) > 1:
            rows.append(ids)
            answers.append(word[0])
    longest = max(map(len, rows))
    padded = [row + [0] * (longest - len(row)) for row in rows]
    input_ids, wanted = torch.tensor(padded), torch.tensor(answers)
    found = input_ids == wanted[:, None]
    last = (found * torch.arange(longest)).argmax(1)
    places = found & (torch.arange(longest) < last[:, None])
    return Recalls(input_ids, last - 1, wanted, places)


def recall_weights(model: MiniMind, recalls: Recalls) -> Tensor:
    """Return the attention weights at the positions that predict the word.

    Returns
    -------
    Tensor, shape (layers, stories, heads, time)
    """
    maps = model.attention_maps(recalls.input_ids)
    return maps[:, torch.arange(len(recalls.at)), :, recalls.at].transpose(
        0, 1
    )


def head_hits(model: MiniMind, recalls: Recalls) -> Tensor:
    """Return the share of stories in which a head attends most to a source.

    Returns
    -------
    Tensor, shape (layers, heads)
    """
    most = recall_weights(model, recalls).argmax(-1)
    stories = torch.arange(len(recalls.at))[:, None]
    return recalls.places[stories, most].float().mean(1)


def right_recalls(model: MiniMind, recalls: Recalls) -> float:
    """Return the share of stories in which the word is predicted."""
    stories = torch.arange(len(recalls.at))
    with torch.no_grad():
        logits = model(recalls.input_ids).logits[stories, recalls.at]
    return (logits.argmax(-1) == recalls.answers).float().mean().item()


def without_head(model: MiniMind, layer: int, head: int) -> MiniMind:
    """Return a copy of the model with one head's output set to zero."""
    less = copy.deepcopy(model)
    width = model.config.head_width
    columns = slice(head * width, (head + 1) * width)
    name = f"model.layers.{layer}.self_attn.o_proj.weight"
    less.get_parameter(name).data[:, columns] = 0
    return less


def stream_sizes(model: MiniMind, input_ids: Tensor) -> list[float]:
    """Return the root mean square of the residual stream, layer by layer.

    Returns
    -------
    list of float
        After the embedding, then after each attention and each
        feed-forward part: ``2 * layers + 1`` numbers.
    """
    sizes: list[float] = []

    def note(_module: object, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(inputs[0].square().mean().sqrt().item())

    hooks = [
        norm.register_forward_pre_hook(note)
        for name, norm in model.named_modules()
        if isinstance(norm, RMSNorm) and "self_attn" not in name
    ]
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


STUDIES: dict[str, Study] = {}
