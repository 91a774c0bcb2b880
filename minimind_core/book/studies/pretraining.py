"""Short training runs to compare, and the loss by kind of token.

    from minimind_core.book.studies import get_study
    get_study("learning_rates")    # loss by rate, with and without warm-up
    get_study("binding")           # when a model learns who has what

    from minimind_core.book.studies.pretraining import nats_by_kind
    nats_by_kind(model, tokenizer, stories)["remembered: what"]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from operator import sub
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from minimind_core.book.stages import get_stage
from minimind_core.config import TrainConfig, get_preset
from minimind_core.data import (
    Document,
    Encoded,
    Row,
    Rows,
    Source,
    document_encoder,
    next_rows,
    open_source,
    parse_data,
)
from minimind_core.evaluation import held_out_documents, rows_loss
from minimind_core.microworld import Story, write_story
from minimind_core.microworld.stories import language_module
from minimind_core.microworld.tape import Language, Options, Reader
from minimind_core.microworld.world import COLORS, tell
from minimind_core.model import MiniMind
from minimind_core.run import Record, column
from minimind_core.tokenizer import (
    encode_document,
    encode_text,
    load_tokenizer,
    plain_backend,
)
from minimind_core.train import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HELD_OUT = 1_000_000
"""Seed of stories that no run here is trained on."""

# --- the loss of a story by kind of token ----------------------------------

TEMPLATE, CHOICE, WHO, WHAT = (
    "template", "free choice", "remembered: who", "remembered: what",
)  # fmt: skip
KINDS = (TEMPLATE, CHOICE, WHO, WHAT)
PERSONAL = {
    "person", "introduced", "job", "home", "sub", "Sub", "obj", "poss",
}  # fmt: skip


class TokenKinds(NamedTuple):
    """The tokens of a story, with the kind of each.

    Attributes
    ----------
    ids : list of int
        Begin, text, end.
    kinds : list of str
        Of every token but the first: one of `KINDS`.
    floors : list of float
        The lowest possible loss of each token, in nats, given by the grammar;
        they add up to the floor of the story.
    """

    ids: list[int]
    kinds: list[str]
    floors: list[float]


class _Marker(Reader):
    """Parses a story and records what each character depends on."""

    def __init__(self, language: Language, text: str) -> None:
        super().__init__(language, text)
        self.surprise = [0.0] * len(text)
        self.kinds = [TEMPLATE] * len(text)

    def _emit(self, text: str) -> None:
        start = self.position
        super()._emit(text)
        # Words that a sentence does not choose come from the state.
        words = self.language.words
        tables = {table for table in words if text in words[table].values()}
        if tables:
            kind = WHO if tables <= PERSONAL else WHAT
            self.kinds[start : self.position] = [kind] * len(text)

    def _pick(self, options: Options, texts: Sequence[str]) -> int:
        start = self.position
        at = super()._pick(options, texts)
        chosen, left = texts[at], sum(options.weights)
        for n in range(1, len(chosen) + 1):
            kept = sum(
                weight
                for weight, text in zip(options.weights, texts, strict=True)
                if text[:n] == chosen[:n]
            )
            self.surprise[start + n - 1] += math.log(left / kept)
            left = kept
        return at


def token_kinds(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> TokenKinds:
    """Classify each token of a story, and compute its floor.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    text : str
        A valid story, in English.

    Returns
    -------
    TokenKinds
        A token is a free choice if the grammar allows several options there;
        remembered if the earlier story determines it; and otherwise part of
        the template.
    """
    marker = _Marker(language_module("en").LANGUAGE, text)
    tell(marker)
    marker.finish()
    kinds, floors = [], []
    for start, end in plain_backend(tokenizer).encode(text).offsets:
        floor = sum(marker.surprise[start:end])
        found = {marker.kinds[i] for i in range(start, end)} - {TEMPLATE}
        kind = max(found, default=TEMPLATE)
        kinds.append(CHOICE if floor > 1e-12 else kind)
        floors.append(floor)
    ids = encode_document(tokenizer, text)
    return TokenKinds(ids, [*kinds, TEMPLATE], [*floors, 0.0])


@torch.no_grad()
def token_losses(
    model: nn.Module, documents: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Compute the loss of each token of documents, except the first.

    Parameters
    ----------
    model : nn.Module
    documents : sequence of sequences of int

    Returns
    -------
    list of list of float
        In nats.
    """
    device = next(model.parameters()).device
    width = max(map(len, documents))
    padded = [[*ids, *[0] * (width - len(ids))] for ids in documents]
    ids = torch.tensor(padded, device=device)
    found = nn.functional.cross_entropy(
        model(ids).logits[:, :-1].float().transpose(1, 2), ids[:, 1:],
        reduction="none",
    )  # fmt: skip
    rows = found.tolist()
    return [
        row[: len(one) - 1] for row, one in zip(rows, documents, strict=True)
    ]


def nats_by_kind(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Compute how much each kind of token contributes to the loss.

    Parameters
    ----------
    model : nn.Module
    tokenizer : PreTrainedTokenizerFast
    texts : sequence of str
        Valid stories.

    Returns
    -------
    dict
        Kind -> ``loss`` and ``floor`` in nats per story, ``tokens`` per
        story.
    """
    marked = [token_kinds(tokenizer, text) for text in texts]
    losses = token_losses(model, [one.ids for one in marked])
    found = {
        kind: {"loss": 0.0, "floor": 0.0, "tokens": 0.0} for kind in KINDS
    }
    for one, row in zip(marked, losses, strict=True):
        for kind, floor, loss in zip(
            one.kinds, one.floors, row, strict=True
        ):
            found[kind]["loss"] += loss / len(texts)
            found[kind]["floor"] += floor / len(texts)
            found[kind]["tokens"] += 1 / len(texts)
    return found


def who_has_what(
    tokenizer: PreTrainedTokenizerFast, count: int
) -> Callable[[nn.Module], Record]:
    """Return a check for the trainer: does the model bind colours to people?

    The end of a story about trading has two positions at which the model must
    remember a colour. Two colours were named, and one of them is right.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    count : int
        Number of stories.

    Returns
    -------
    callable
        Takes a model; returns the mean probability of the ``right`` colour,
        of the ``other`` one in the story, and of ``any`` colour.
    """
    words = language_module("en").WORDS["color"]
    colour = {
        key: encode_text(tokenizer, f" {words[key]}")[0]
        for key in COLORS.keys
    }
    places: list[tuple[list[int], int, int]] = []
    for story in _trades(count):
        after = 0
        for own, swapped in (("color2", "color"), ("color", "color2")):
            right = words[story.state[own]]
            after = story.text.index(f" has the {right}", after) + 8
            ids = encode_document(tokenizer, story.text[:after])[:-1]
            places.append((
                ids, colour[story.state[own]], colour[story.state[swapped]]
            ))
    width = max(len(ids) for ids, _, _ in places)
    padded = [ids + [0] * (width - len(ids)) for ids, _, _ in places]
    ends = [len(ids) - 1 for ids, _, _ in places]
    rows = range(len(places))

    def check(model: nn.Module) -> Record:
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model(torch.tensor(padded, device=device)).logits
        probs = logits[rows, ends].float().softmax(-1).cpu()
        return {
            "right": float(probs[rows, [r for _, r, _ in places]].mean()),
            "other": float(probs[rows, [o for _, _, o in places]].mean()),
            "any": float(probs[:, list(colour.values())].sum(1).mean()),
        }

    return check


def _trades(count: int) -> list[Story]:
    found: list[Story] = []
    index = 0
    while len(found) < count:
        story = write_story(HELD_OUT, index)
        if story.state["plot"] == "trade":
            found.append(story)
        index += 1
    return found


# --- short trainings -------------------------------------------------------

BATCH = 8
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
WARMUPS = (0.0, 0.3)
SWEEP_STEPS = 40
OPTIMIZERS = (
    ("adamw", 4e-3), ("adamw", 8e-3), ("adamw", 1.6e-2),
    ("muon", 7e-3), ("muon", 1.4e-2), ("muon", 2.8e-2),
)  # fmt: skip
OPTIMIZER_CHECK = 100
"""Held-out stories of this comparison."""
OPTIMIZER_STEPS = 80
BINDING_STEPS, BINDING_BATCH, BINDING_EVERY = 600, 16, 10
BINDING_KNOWN = 3
"""Number of consecutive correct checks after which training ends."""
BINDING_RATES = (4e-3, 2e-3)
FAULT_STEPS = 50


def short_run(
    preset: str,
    *,
    steps: int,
    batch_size: int = BATCH,
    encode_like: Callable[[list[int]], list[int]] | None = None,
    stories: int | None = None,
    validate: Callable[[nn.Module], Record] | None = None,
    **settings: Any,
) -> list[Record]:
    """Train a new model for a few steps, from a fixed seed.

    Parameters
    ----------
    preset : str
    steps, batch_size : int
    encode_like : callable, optional
        Makes the labels from the ids; by default, the ids themselves.
    stories : int, optional
        Train repeatedly on this many stories instead of on new ones.
    validate : callable, optional
        See `Trainer`.
    **settings
        Other fields of `TrainConfig`.

    Returns
    -------
    list of dict
        The log, with every step in it.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    chosen = get_preset(preset)
    config = chosen.pretrain.replace(**{
        "steps": steps, "batch_size": batch_size, "micro_batch_size": None,
        "seq_len": 128, "packed": False, "log_every": 1, "sample_every": 0,
        "validate_every": 0, "save_every": 0, "schedule": "constant",
        "optimizer": "adamw", "lr": 3e-3, "warmup_ratio": 0.1,
        **settings,
    })  # fmt: skip
    shape = chosen.model.replace(vocab_size=len(tokenizer))
    torch.manual_seed(config.seed)
    trainer = Trainer(
        MiniMind(shape),
        _stream(tokenizer, config, encode_like, stories),
        config, validate=validate, progress=False,
    )  # fmt: skip
    return trainer.fit()


class _Again:
    """A source that repeats its first stories."""

    size = None

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count = source, count

    def records(self, indices: Sequence[int]) -> list[Document]:
        return self.source.records([i % self.count for i in indices])


def _stream(
    tokenizer: PreTrainedTokenizerFast,
    config: TrainConfig,
    encode_like: Callable[[list[int]], list[int]] | None,
    stories: int | None,
    *,
    held_out: bool = False,
) -> Rows:
    source = open_source(
        parse_data("microworld"), "text", seed=config.seed, held_out=held_out
    )
    if stories is not None:
        source = _Again(source, stories)
    plain = document_encoder(tokenizer)

    def encode(texts: list[str]) -> list[Encoded | None]:
        label = encode_like or list
        return [
            Encoded(one.input_ids, label(list(one.input_ids)))
            for one in plain(texts)
            if one is not None
        ]

    return Rows(source, encode, seq_len=config.seq_len, seed=config.seed)


def learning_rates(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train with AdamW at six rates, with and without a long warm-up.

    Returns
    -------
    list of dict
        ``rate``, ``warmup_ratio``, ``losses`` by step and ``last``, the
        mean of the last five.
    """
    found = []
    for warmup in WARMUPS:
        for rate in RATES:
            if progress:
                print(f"  {rate:g}, warm-up {warmup:g}", flush=True)
            log = short_run(
                preset, steps=SWEEP_STEPS, lr=rate, warmup_ratio=warmup
            )
            losses = column(log, "loss")[1]
            found.append({
                "rate": rate, "warmup_ratio": warmup, "losses": losses,
                "last": fmean(losses[-5:]),
            })  # fmt: skip
    return found


def optimizers(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Compare AdamW and the Muon hybrid on the same stories and steps.

    Returns
    -------
    list of dict
        ``optimizer``, ``rate`` (of the matrices), ``losses``, the
        ``held_out`` loss at the end on so many ``stories``, their
        ``floor``, and the ``seconds`` of an undisturbed step: the first
        decile of all steps.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    check = held_out_documents(
        tokenizer, "microworld", seed=0, count=OPTIMIZER_CHECK
    )
    found = []
    for name, rate in OPTIMIZERS:
        if progress:
            print(f"  {name} {rate:g}", flush=True)
        settings: dict[str, Any] = {"lr": rate}
        if name == "muon":
            settings = {"lr": 8e-3, "muon_lr_ratio": rate / 8e-3}
        log = short_run(
            preset, steps=OPTIMIZER_STEPS, optimizer=name, warmup_ratio=0.2,
            schedule="linear", validate=check, **settings,
        )  # fmt: skip
        clock = column(log, "seconds")[1]
        found.append({
            "optimizer": name, "rate": rate,
            "losses": column(log, "loss")[1],
            "held_out": log[-1]["validation_loss"],
            "floor": log[-1]["floor"],
            "stories": OPTIMIZER_CHECK,
            "seconds": quantiles(map(sub, clock[1:], clock), n=10)[0],
        })  # fmt: skip
    return found


class _BoundError(Exception):
    """Ends the training once the model has learnt the binding."""


def binding(preset: str, progress: bool) -> dict[str, list[float]]:
    """Pretrain briefly, and check regularly whether the model binds facts.

    Training ends soon after the model has learnt this. The step at which it
    happens varies between seeds by more than a factor of two.

    Returns
    -------
    dict
        By step: ``steps``, ``right``, ``other`` and ``any`` (see
        `who_has_what`), and for each of `KINDS` its loss above the floor in
        nats per story.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    asked = who_has_what(tokenizer, 24)
    texts = [write_story(HELD_OUT, i).text for i in range(24)]
    seen: list[Record] = []

    def check(model: nn.Module) -> Record:
        kinds = nats_by_kind(model, tokenizer, texts)
        above = {k: v["loss"] - v["floor"] for k, v in kinds.items()}
        step = (len(seen) + 1) * BINDING_EVERY
        seen.append({"steps": step, **asked(model), **above})
        last = [one["right"] for one in seen[-BINDING_KNOWN:]]
        if len(last) == BINDING_KNOWN and min(last) > 0.9:
            raise _BoundError
        return {}

    if progress:
        print(f"  at most {BINDING_STEPS} steps", flush=True)
    with contextlib.suppress(_BoundError):
        short_run(
            preset, steps=BINDING_STEPS, batch_size=BINDING_BATCH,
            optimizer="muon", lr=BINDING_RATES[0],
            muon_lr_ratio=BINDING_RATES[1] / BINDING_RATES[0],
            warmup_ratio=20 / BINDING_STEPS,
            validate_every=BINDING_EVERY, validate=check,
        )  # fmt: skip
    names = ("steps", "right", "other", "any", *KINDS)
    return {name: [float(one[name]) for one in seen] for name in names}


def _see_the_answer(ids: list[int]) -> list[int]:
    """Labels shifted by one: each position predicts its own token."""
    return [ids[0], *ids[:-1]]


FAULTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a learning rate 30 times too high": {"lr": 9e-2},
    "labels that the model has already read": {
        "encode_like": _see_the_answer,
    },
    "the same eight stories again and again": {"stories": 8},
}


def faults(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train four models, three of them with a fault.

    Returns
    -------
    list of dict
        ``fault``, ``losses`` by step, ``steps`` and ``held_out`` for the
        loss on stories that were not trained on, with the same labels, and
        the ``floor``.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    base = TrainConfig(seq_len=128)
    texts = [write_story(HELD_OUT, i) for i in range(40)]
    tokens = sum(
        len(encode_document(tokenizer, s.text)) - 1 for s in texts
    )
    floor = -sum(story.logprob for story in texts) / tokens
    found = []
    for fault, settings in FAULTS.items():
        if progress:
            print(f"  {fault}", flush=True)
        rows = next_rows(
            _stream(tokenizer, base, settings.get("encode_like"), None,
                    held_out=True),
            len(texts),
        )  # fmt: skip
        log = short_run(
            preset, steps=FAULT_STEPS, validate_every=10,
            validate=_mean_loss(rows), **settings,
        )  # fmt: skip
        steps, held_out = column(log, "validation_loss")
        found.append({
            "fault": fault, "losses": column(log, "loss")[1],
            "steps": steps, "held_out": held_out, "floor": floor,
        })  # fmt: skip
    return found


def _mean_loss(rows: list[Row]) -> Callable[[nn.Module], Record]:
    def check(model: nn.Module) -> Record:
        nats, tokens = rows_loss(model, rows)
        return {"validation_loss": nats / tokens}

    return check


STUDIES = {
    "learning_rates": learning_rates,
    "optimizers": optimizers,
    "binding": binding,
    "faults": faults,
}
