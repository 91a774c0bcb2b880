"""What filters find in a dirty corpus, and what its dirt costs in nats.

    from minimind_core.book.studies import get_study
    get_study("dirt_filters")["filters"]    # true precision and recall
    get_study("dirt_prices")["runs"]        # loss over the floor, by dirt

The dirt is put into the microworld's stories by `minimind_core.microworld.
dirt`, which labels each record, so that nothing here is estimated.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from minimind_core.book.stages import get_stage
from minimind_core.config import get_preset
from minimind_core.data import (
    Rows,
    Source,
    count_labels,
    document_encoder,
    next_rows,
)
from minimind_core.data.cleaning import Cleaning, clean
from minimind_core.data.filters import (
    Contamination,
    ExactDuplicates,
    Filter,
    Languages,
    Length,
    NearDuplicates,
    Repetition,
)
from minimind_core.evaluation import held_out_documents
from minimind_core.microworld import HELD_OUT_SEED, write_story
from minimind_core.microworld.dirt import (
    DIRT,
    DirtyStories,
    DirtyStory,
    score,
)
from minimind_core.model import MiniMind
from minimind_core.tokenizer import load_tokenizer
from minimind_core.train import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from minimind_core.book.studies import Study

RECORDS = 4000
EACH = 0.05
"""Share of each kind of dirt in the corpus on which filters are tried."""
HELD_OUT = 200
SHORTEST = 20
"""Words of the shortest text that the filter by length keeps; the stories
have 40 and more."""
NEAR = 0.6
"""Similarity of near duplicates that `dirt_prices` removes."""
THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
COPIES = ("duplicate", "near duplicate")

# --- precision and recall --------------------------------------------------


def filters_and_targets() -> list[tuple[Filter, Sequence[str]]]:
    """Return the filters to try, each with the kinds that it is meant for."""
    held_out = [write_story(HELD_OUT_SEED, i).text for i in range(RECORDS)]
    return [
        (ExactDuplicates(), COPIES),
        (NearDuplicates(NEAR), COPIES),
        (Languages("en"), ("other language",)),
        (Length(SHORTEST), ("fragment",)),
        (Repetition(), ("repeated line",)),
        (Contamination(held_out, share=0.9), ("held out",)),
    ]


def removed_by(chosen: Filter, records: Sequence[DirtyStory]) -> list[int]:
    """Return the indices of the records that a filter removes."""
    numbered = [{"text": one.text, "at": i} for i, one in enumerate(records)]
    kept = {record["at"] for record in clean(numbered, [chosen]).kept}
    return [i for i in range(len(records)) if i not in kept]


def dirt_filters(preset: str, progress: bool) -> dict[str, Any]:
    """Run each filter alone on a corpus with all kinds of dirt.

    Returns
    -------
    dict
        ``records`` by kind of dirt, ``""`` for clean ones; ``filters``: of
        each its ``name``, ``target`` kinds, ``precision`` and ``recall``
        for these, ``removed`` records, and ``found``: the share of each
        kind that it removed; and ``thresholds``: precision and recall of
        `NearDuplicates` by ``threshold``, where a fifth of the records are
        near duplicates and the others are clean.
    """
    source = DirtyStories(
        "en", 0, dict.fromkeys(DIRT, EACH), held_out=RECORDS
    )
    records = source.labelled(range(RECORDS))
    labels = [one.dirt for one in records]
    kinds = ("", *DIRT)
    found = []
    for chosen, target in filters_and_targets():
        removed = removed_by(chosen, records)
        result = score(labels, removed, target)
        if progress:
            print(f"  {chosen.name}: {len(removed)} removed", flush=True)
        found.append({
            "name": chosen.name,
            "target": list(target),
            "precision": result.precision,
            "recall": result.recall,
            "removed": result.removed,
            "found": {
                kind: score(labels, removed, [kind]).recall for kind in kinds
            },
        })  # fmt: skip
    source = DirtyStories("en", 0, {"near duplicate": 0.2})
    records = source.labelled(range(RECORDS // 2))
    curve = []
    for threshold in THRESHOLDS:
        result = score(
            [one.dirt for one in records],
            removed_by(NearDuplicates(threshold), records), COPIES[1:],
        )  # fmt: skip
        curve.append({
            "threshold": threshold,
            "precision": result.precision,
            "recall": result.recall,
        })  # fmt: skip
    return {
        "records": {kind: labels.count(kind) for kind in kinds},
        "filters": found,
        "thresholds": curve,
    }


# --- the price in nats -----------------------------------------------------

SHARE = 0.5
"""Share of dirty records in each run's data."""
SHARES: dict[str, Mapping[str, float]] = {
    "clean": {},
    "duplicates": {"duplicate": SHARE},
    "contradictions": {"contradiction": SHARE},
    "other language": {"other language": SHARE},
    "noise": dict.fromkeys(
        ("typos", "shuffled", "boilerplate", "repeated line"), SHARE / 4
    ),
}  # fmt: skip
MIXED = {
    "duplicate": 0.1, "near duplicate": 0.1, "other language": 0.15,
    "repeated line": 0.05, "contradiction": 0.05, "typos": 0.05,
}  # fmt: skip
"""For the last two kinds there is no filter."""
SHARES |= {"a mixture": MIXED, "the mixture, cleaned": MIXED}
TOKENS = 160_000
"""Tokens that each model is trained on, to within one step."""
WIDTH, BATCH, LENGTH = 64, 4, 256
SEEDS = (0, 1)


class _Kept:
    """The records of an endless source that pass the filters, in order."""

    size = None

    def __init__(
        self, source: DirtyStories, filters: Sequence[Filter]
    ) -> None:
        stream = (vars(source.labelled([i])[0]) for i in count())
        self._cleaning = iter(Cleaning(stream, filters))
        self._kept: list[DirtyStory] = []

    def labelled(self, indices: Sequence[int]) -> list[DirtyStory]:
        """The kept records with these indices, with their dirt."""
        while len(self._kept) <= max(indices):
            self._kept.append(DirtyStory(**next(self._cleaning)))
        return [self._kept[i] for i in indices]

    def records(self, indices: Sequence[int]) -> list[str]:
        """The texts of the kept records with these indices."""
        return [one.text for one in self.labelled(indices)]


def _rows(source: Source, tokenizer: PreTrainedTokenizerFast) -> Rows:
    return Rows(
        source, document_encoder(tokenizer), seq_len=LENGTH, packed=True,
    )  # fmt: skip


def dirt_prices(preset: str, progress: bool) -> dict[str, Any]:
    """Train small models on dirty data, each on the same number of tokens.

    All runs of a seed begin with the same weights and draw from the same
    stream of stories; where one has dirt, another has the clean story. The
    run ``half as much, clean`` is trained on half the tokens, which is what
    would remain if half of them were useless but did no harm.

    Returns
    -------
    dict
        ``floor`` in nats per token; ``tokens`` of each run; and ``runs``:
        the ``name`` and ``seed`` of each, its ``over`` (loss on clean
        held-out stories, minus the floor), ``tokens``, ``steps`` and
        ``clean_tokens`` (the share of its tokens in clean records), and
        ``seconds``.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    check = held_out_documents(
        tokenizer, "microworld", seed=0, count=HELD_OUT
    )
    plans = [(name, shares, TOKENS) for name, shares in SHARES.items()]
    plans.insert(1, ("half as much, clean", {}, TOKENS // 2))
    runs, floor = [], 0.0
    for seed in SEEDS:
        for name, shares, tokens in plans:
            begun = time.perf_counter()
            dirty = DirtyStories("en", seed, shares)
            source: DirtyStories | _Kept = dirty
            if name.endswith("cleaned"):
                # Not by contamination: the held-out stories are not in it.
                chosen = [one for one, _ in filters_and_targets()[:-1]]
                source = _Kept(dirty, chosen)
            trained, steps = _train(source, tokenizer, tokens, seed)
            seen = check(trained)
            floor = seen["floor"]
            over = seen["validation_loss"] - floor
            if progress:
                print(f"  {name}, seed {seed}: {over:.3f} nats over the "
                      "floor", flush=True)  # fmt: skip
            runs.append({
                "name": name, "seed": seed, "over": over, "steps": steps,
                "clean_tokens": _clean_share(source, tokenizer),
                "seconds": round(time.perf_counter() - begun, 1),
            })  # fmt: skip
    return {"floor": floor, "tokens": TOKENS, "runs": runs}


def _train(
    source: Source, tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int
) -> tuple[MiniMind, int]:
    """Train a model on so many tokens; return it with the steps it took."""
    # Rows of stories and rows of fragments are not equally full, so the
    # number of steps is counted out before training.
    rows, steps, left = _rows(source, tokenizer), 0, tokens
    while left > 0:
        left -= count_labels(next_rows(rows, BATCH))
        steps += 1
    chosen = get_preset("tiny")
    config = chosen.pretrain.replace(
        steps=steps, batch_size=BATCH, micro_batch_size=None, packed=True,
        seq_len=LENGTH, log_every=steps, sample_every=0, validate_every=0,
        save_every=0, warmup_ratio=0.1, dtype="float32", seed=seed,
    )  # fmt: skip
    shape = chosen.model.replace(
        vocab_size=len(tokenizer), hidden_size=WIDTH, head_dim=WIDTH // 4,
        intermediate_size=4 * WIDTH,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = MiniMind(shape)
    stream = _rows(source, tokenizer)
    Trainer(model, stream, config, progress=False).fit()
    return model.eval(), steps


def _clean_share(
    source: DirtyStories | _Kept, tokenizer: PreTrainedTokenizerFast
) -> float:
    """Share of a corpus's tokens that are in clean records."""
    labelled = source.labelled(range(1000))
    encoded = document_encoder(tokenizer)([one.text for one in labelled])
    sizes = [len(one.input_ids) for one in encoded if one is not None]
    clean_sizes = [
        size
        for size, one in zip(sizes, labelled, strict=True)
        if not one.dirt
    ]
    return sum(clean_sizes) / sum(sizes)


STUDIES: dict[str, Study] = {
    "dirt_filters": dirt_filters, "dirt_prices": dirt_prices,
}  # fmt: skip
