"""What each part of the transformer is for: the same model without it.

    from minimind_core.book.studies import get_study
    get_study("parts")     # held-out loss of five small models

All models are trained in the same way, on the same stories in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from minimind_core.book.stages import get_stage
from minimind_core.config import get_preset
from minimind_core.data import Rows, document_encoder, open_source, parse_data
from minimind_core.evaluation import held_out_documents
from minimind_core.model import Block, MiniMind
from minimind_core.run import column
from minimind_core.tokenizer import load_tokenizer
from minimind_core.train import Trainer

if TYPE_CHECKING:
    from minimind_core.book.studies import Study

STEPS, BATCH, WIDTH = 300, 16, 64


class Nothing(nn.Module):
    """Stands for a part and adds zero to the stream."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Return zeros of the input's shape."""
        return torch.zeros_like(x)


class Chain(Block):
    """A block whose parts replace the stream instead of adding to it."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """Apply both parts, one after the other."""
        x = self.self_attn(self.input_layernorm(x), *rest)
        return self.mlp(self.post_attention_layernorm(x))


def without_attention(model: MiniMind) -> None:
    """Replace the attention of every block by nothing."""
    for block in model.model.layers:
        block.self_attn = Nothing()


def without_mlp(model: MiniMind) -> None:
    """Replace the MLP of every block by nothing."""
    for block in model.model.layers:
        block.mlp = Nothing()


def without_residuals(model: MiniMind) -> None:
    """Let every part replace the stream."""
    for block in model.model.layers:
        block.__class__ = Chain


VARIANTS: dict[str, tuple[int, Callable[[MiniMind], None] | None]] = {
    "whole": (2, None),
    "one layer": (1, None),
    "no attention": (2, without_attention),
    "no MLP": (2, without_mlp),
    "no residuals": (2, without_residuals),
}


def parts(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train a small model whole, and without one part at a time.

    Returns
    -------
    list of dict
        ``name``, ``parameters`` (which are trained), ``losses`` by step, and
        the ``held_out`` loss and the ``floor``, in nats a token.
    """
    tokenizer = load_tokenizer(get_stage("tokenizer", preset=preset))
    config = get_preset(preset).pretrain.replace(
        steps=STEPS, batch_size=BATCH, micro_batch_size=None, seq_len=128,
        packed=False, log_every=1, sample_every=0, validate_every=0,
        save_every=0, schedule="cosine", optimizer="adamw", lr=6e-3,
        warmup_ratio=0.1,
    )  # fmt: skip
    encode = document_encoder(tokenizer)
    check = held_out_documents(tokenizer, "microworld", seed=0, count=200)
    found = []
    for name, (layers, change) in VARIANTS.items():
        if progress:
            print(f"  {name}", flush=True)
        shape = get_preset("tiny").model.replace(
            vocab_size=len(tokenizer), hidden_size=WIDTH, head_dim=16,
            intermediate_size=4 * WIDTH, num_hidden_layers=layers,
        )  # fmt: skip
        torch.manual_seed(0)
        model = MiniMind(shape)
        if change is not None:
            change(model)
        source = open_source(
            parse_data("microworld"), "text", seed=config.seed
        )
        stream = Rows(source, encode, seq_len=128, seed=config.seed)
        log = Trainer(model, stream, config, progress=False).fit()
        measured = check(model.eval())
        found.append({
            "name": name,
            "parameters": sum(w.numel() for w in model.parameters()),
            "losses": column(log, "loss")[1],
            "held_out": measured["validation_loss"],
            "floor": measured["floor"],
        })  # fmt: skip
    return found


STUDIES: dict[str, Study] = {"parts": parts}
