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
    rivals : Tensor of bool, shape (stories, time)
        All occurrences, up to `at`, of the word of another role.
    """

    input_ids: Tensor
    at: Tensor
    answers: Tensor
    places: Tensor
    rivals: Tensor


def find_recalls(
    tokenizer: PreTrainedTokenizerFast,
    plot: str,
    role: str,
    *,
    rival: str | None = None,
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
    rival : str, optional
        The role whose word is confused most easily with the right one.
    stories : int
        Number of stories.
    seed : int
        Seed of the stories.
    """
    rows: list[list[int]] = []
    answers: list[int] = []
    others: list[int] = []  # -1 where there is none
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
            other = story.state[rival] if rival else None
            others.append(_token(tokenizer, other) if other else -1)
    longest = max(map(len, rows))
    padded = [row + [0] * (longest - len(row)) for row in rows]
    input_ids, wanted = torch.tensor(padded), torch.tensor(answers)
    found = input_ids == wanted[:, None]
    last = (found * torch.arange(longest)).argmax(1)
    before = torch.arange(longest) < last[:, None]
    rivals = (input_ids == torch.tensor(others)[:, None]) & before
    return Recalls(input_ids, last - 1, wanted, found & before, rivals)


def _token(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """Return the id of a word that is one token."""
    (token,) = encode_text(tokenizer, f" {word}")
    return token


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


class Slot(NamedTuple):
    """Trades cut off where a color has to be named, and the two candidates.

    Attributes
    ----------
    ending : str
        How the texts end, with roles in place of the names.
    owner : int
        Which candidate belongs to the person named last: 0 or 1.
    input_ids : list of Tensor, each of shape (1, time)
    candidates : list of (int, int)
        The tokens of the color that the hero gets, and of the friend's.
    """

    ending: str
    owner: int
    input_ids: list[Tensor]
    candidates: list[tuple[int, int]]


def trade_slots(
    tokenizer: PreTrainedTokenizerFast, *, stories: int = 100, seed: int = 7
) -> list[Slot]:
    """Cut trades off before a color, with the names as told and swapped.

    After a trade a story says ``Now HERO has the green hat and FRIEND has
    the red kite.`` Its color can be told by the name before it, or by the
    place in the sentence, since the hero always comes first. Only with the
    names swapped do the two differ.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    stories, seed : int
        As in `find_recalls`.

    Returns
    -------
    list of Slot
        The first place and the second, each with the name that the grammar
        puts there and with the other one.
    """
    found = []
    for place in (0, 1):
        for owner in (place, 1 - place):
            roles = ("HERO", "FRIEND") if owner == place else (
                "FRIEND", "HERO"
            )  # fmt: skip
            ending = f"Now {roles[0]} has the"
            if place:
                ending += f" ... and {roles[1]} has the"
            found.append(Slot(ending, owner, [], []))
    index = 0
    while len(found[0].input_ids) < stories:
        story = write_story(seed, index)
        index += 1
        if story.state["plot"] != "trade":
            continue
        head, _, last = story.text.partition("Now ")
        hero, _, last = last.partition(" has the ")
        gets, _, last = last.partition(" and ")
        friend = last.partition(" has the ")[0]
        color, color2 = story.state["color"], story.state["color2"]
        pair = _token(tokenizer, color2), _token(tokenizer, color)
        for slot in found:
            place = int("..." in slot.ending)
            names = (hero, friend) if slot.owner == place else (friend, hero)
            text = f"{head}Now {names[0]} has the"
            if place:
                text += f" {gets} and {names[1]} has the"
            ids = encode_text(tokenizer, text)
            slot.input_ids.append(torch.tensor([ids]))
            slot.candidates.append(pair)
    return found


def slot_choices(model: MiniMind, slot: Slot) -> dict[str, Tensor]:
    """Measure which of the two colors a model names, and its heads attend to.

    Returns
    -------
    dict
        ``named``: whether the second candidate is the likelier one, shape
        (stories,). ``attended``: whether more of a head's attention is on
        it, shape (stories, layers, heads).
    """
    named, attended = [], []
    for ids, (one, two) in zip(slot.input_ids, slot.candidates, strict=True):
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        named.append(logits[two] > logits[one])
        last = model.attention_maps(ids)[:, 0, :, -1]
        sums = [last[..., ids[0] == token].sum(-1) for token in (one, two)]
        attended.append(sums[1] > sums[0])
    return {
        "named": torch.stack(named).float(),
        "attended": torch.stack(attended).float(),
    }


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
