"""Model folders gone wrong: copies of a valid one with one defect each.

    from minimind_core.book.exhibits.packages import BREAKS, broken, examine
    folder = broken("runs/hf", "elsewhere", "wrong-theta")
    print(examine(folder, prompt, exact_logits).verdict)

Each break is a small edit that a person or a program could make in good
faith. `examine` loads the broken copy as usual, with the Auto classes of
transformers, and reports what a user could notice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from minimind_core.book.exhibits.bench import SENTENCE, read_model
from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.checkpoint import save_model
from minimind_core.export import export_hf
from minimind_core.tokenizer import encode_document

PAIRED = (
    "q_proj.weight", "k_proj.weight", "q_norm.weight", "k_norm.weight",
)  # fmt: skip
"""The weights whose rows RoPE rotates in pairs."""


def edit_json(
    folder: Path,
    name: str,
    changes: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
) -> None:
    """Change and drop keys of a JSON file in a folder."""
    path = folder / name
    values = {**json.loads(path.read_text("utf8")), **(changes or {})}
    for key in without:
        values.pop(key, None)
    path.write_text(json.dumps(values, indent=2), "utf8")


def edit_weights(
    folder: Path, change: Callable[[str, Tensor], tuple[str, Tensor]]
) -> None:
    """Rewrite the tensors of a safetensors file, renamed or changed."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = dict(change(*item) for item in load_file(path).items())
    save_file(state, path, metadata={"format": "pt"})


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder rows from RoPE's half-split pairs to neighbouring pairs.

    Qwen3 rotates entry `i` of a head with entry ``i + head_dim / 2``; the
    models of MiniMind's first releases rotated entry ``2 i`` with
    ``2 i + 1``. The shapes are the same.

    Parameters
    ----------
    weight : Tensor, shape (heads * head_dim, ...)
    head_dim : int
    """
    shape = weight.shape
    halves = weight.reshape(-1, 2, head_dim // 2, *shape[1:])
    return halves.transpose(1, 2).reshape(shape).contiguous()


# --- one thing broken ------------------------------------------------------


def _no_stop(folder: Path) -> None:
    for name in ("generation_config.json", "config.json"):
        edit_json(folder, name, without=(
            "eos_token_id", "bos_token_id", "pad_token_id"))  # fmt: skip


def _half_stop(folder: Path) -> None:
    edit_json(folder, "generation_config.json", without=["eos_token_id"])


def _no_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()


def _no_tokenizer_class(folder: Path) -> None:
    edit_json(folder, "tokenizer_config.json", without=["tokenizer_class"])


def _no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def set_theta(folder: Path, theta: float) -> None:
    """Change the rotary base of a package, in both places."""
    edit_json(folder, "config.json", {
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
    })  # fmt: skip


def _wrong_theta(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf8"))
    set_theta(folder, 1e6 if config["rope_theta"] == 1e4 else 1e4)


def _wrong_epsilon(folder: Path) -> None:
    edit_json(folder, "config.json", {"rms_norm_eps": 1e-2})


def _untied(folder: Path) -> None:
    edit_json(folder, "config.json", without=["tie_word_embeddings"])


def _no_head_dim(folder: Path) -> None:
    edit_json(folder, "config.json", without=["head_dim"])


def _layer_lost(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf8"))
    layers = config["num_hidden_layers"] - 1
    edit_json(folder, "config.json", {"num_hidden_layers": layers})


def _layer_more(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf8"))
    layers = config["num_hidden_layers"] + 1
    edit_json(folder, "config.json", {"num_hidden_layers": layers})


def _llama(folder: Path) -> None:
    edit_json(folder, "config.json", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"],
    })  # fmt: skip


def _own_names(folder: Path) -> None:
    edit_weights(folder, lambda name, t: (name.replace("o_proj", "wo"), t))


def _other_pairs(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text("utf8"))
    head = config["head_dim"]
    edit_weights(folder, lambda name, t: (
        name, interleave(t, head) if name.endswith(PAIRED) else t
    ))  # fmt: skip


def _half(folder: Path) -> None:
    edit_json(folder, "config.json",
              {"dtype": "bfloat16", "torch_dtype": "bfloat16"})  # fmt: skip
    edit_weights(folder, lambda name, t: (name, t.bfloat16()))


def _cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@dataclass(frozen=True)
class Break:
    """One way to break a package.

    Attributes
    ----------
    key : str
    title : str
        Short description.
    spoil : callable
        Applies the break to a folder.
    """

    key: str
    title: str
    spoil: Callable[[Path], None]


BREAKS = (
    Break("nothing", "nothing is broken", lambda folder: None),
    Break("no-stop", "no end token in any file (upstream)", _no_stop),
    Break("half-stop", "no end token in generation_config.json",
          _half_stop),
    Break("no-generation-config", "no generation_config.json at all",
          _no_generation_config),
    Break("no-tokenizer-class", "no tokenizer_class", _no_tokenizer_class),
    Break("no-template", "no chat_template.jinja", _no_template),
    Break("wrong-theta", "another rope_theta", _wrong_theta),
    Break("wrong-epsilon", "rms_norm_eps 0.01", _wrong_epsilon),
    Break("untied", "no tie_word_embeddings", _untied),
    Break("no-head-dim", "no head_dim", _no_head_dim),
    Break("layer-lost", "one layer too few", _layer_lost),
    Break("layer-more", "one layer too many", _layer_more),
    Break("llama", "called a Llama", _llama),
    Break("own-names", "o_proj named wo", _own_names),
    Break("other-pairs", "RoPE's pairs laid out differently", _other_pairs),
    Break("half", "weights stored in bfloat16", _half),
    Break("cut-short", "the last 1,000 bytes lost", _cut_short),
)  # fmt: skip


def broken(source: str | Path, out: str | Path, key: str) -> Path:
    """Copy a package and break one thing in the copy.

    Parameters
    ----------
    source : path
        The package.
    out : path
        A folder that does not exist yet.
    key : str
        Key of one of `BREAKS`.

    Returns
    -------
    Path
        `out`.
    """
    spoil = {one.key: one.spoil for one in BREAKS}[key]
    shutil.copytree(source, out, copy_function=shutil.copyfile)
    spoil(Path(out))
    return Path(out)


# --- examination -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Examined:
    """The result of loading a package and comparing it with the original.

    Attributes
    ----------
    error : str
        Why it could not be loaded; empty if it could.
    missing, unexpected : tuple of str
        Weights that transformers reported.
    gap : float or None
        Largest difference between its logits and the correct ones.
    same_ids : bool
        Whether the tokenizer gives the correct ids.
    stops : bool
        Whether ``generate`` stopped before its limit.
    said : str
        The generated text.
    """

    error: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    gap: float | None = None
    same_ids: bool = True
    stops: bool = False
    said: str = ""

    @property
    def sound(self) -> bool:
        """Whether it behaves exactly as the original."""
        return (
            not self.error and self.gap == 0 and self.same_ids and self.stops
        )

    @property
    def verdict(self) -> str:
        """``sound``, ``refused``, ``reported`` or ``silent``."""
        if self.error:
            return "refused"
        if self.missing or self.unexpected:
            return "reported"
        return "sound" if self.sound else "silent"

    def facts(self) -> dict[str, str]:
        """All findings, as short texts."""
        if self.error:
            return {"verdict": "refused", "error": self.error[:300]}
        found = {"verdict": self.verdict}
        for name in ("missing", "unexpected"):
            if tensors := getattr(self, name):
                more = f"{len(tensors)} tensors, such as "
                found[name] = (more if tensors[1:] else "") + tensors[0]
        return {
            **found,
            "largest difference of the logits": f"{self.gap or 0:.2g}",
            "token ids": "right" if self.same_ids else "other ones",
            "stops by itself": "yes" if self.stops else "no, it was cut off",
            "answer": self.said,
        }


@torch.no_grad()
def examine(
    folder: str | Path,
    prompt: Sequence[int],
    exact: Tensor,
    *,
    texts: Mapping[str, Sequence[int]] | None = None,
    messages: list[dict[str, str]] | None = None,
    max_new_tokens: int = 40,
) -> Examined:
    """Load a package with transformers and compare it with the original.

    Parameters
    ----------
    folder : path
    prompt : sequence of int
        The prompt to continue.
    exact : Tensor, shape (1, time, vocab)
        The correct logits for it.
    texts : mapping of str to sequence of int, optional
        Texts and their correct ids.
    messages : list of dict, optional
        The conversation that `prompt` is the rendering of.
    max_new_tokens : int
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor([list(prompt)])
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # missing weights are random
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True
            )
        model, told = loaded
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        same = all(
            list(tokenizer(text)["input_ids"]) == list(right)
            for text, right in (texts or {}).items()
        )
        if messages is not None:
            asked = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            same = same and list(asked) == list(prompt)
    except Exception as error:  # any error is the finding
        return Examined(error=f"{type(error).__name__}: {error}")
    gap = (model(ids).logits.float() - exact).abs().max().item()
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False,
        max_new_tokens=max_new_tokens, pad_token_id=0,
    )  # fmt: skip
    new = out[0, ids.size(1) :]
    return Examined(
        missing=tuple(sorted(told["missing_keys"])),
        unexpected=tuple(sorted(told["unexpected_keys"])),
        gap=gap,
        same_ids=same,
        stops=len(new) < max_new_tokens,
        said=str(tokenizer.decode(new)),
    )


def export_like_upstream(
    shape: Mapping[str, Any], state: Mapping[str, Tensor], out: str | Path
) -> None:
    """Export as upstream does: with a config of the shape only.

    Parameters
    ----------
    shape : mapping
        A `ModelConfig` as a dictionary. Only the fields that upstream passes
        to ``Qwen3Config`` are used, which excludes the special tokens.
    state : mapping of str to Tensor
        With ``lm_head.weight``.
    out : path
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    kept = (
        "vocab_size", "hidden_size", "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        "tie_word_embeddings",
    )  # fmt: skip
    config = Qwen3Config(
        **{name: shape[name] for name in kept}, use_sliding_window=False
    )
    model = Qwen3ForCausalLM(config)
    model.load_state_dict(state, strict=True)
    model.save_pretrained(out)


# --- measured -----------------------------------------------------------


@contextmanager
def _exported() -> Iterator[tuple[Path, Tensor, list[int]]]:
    """Yield a valid package, its logits, and their prompt."""
    model, tokenizer = read_model()
    prompt = encode_document(tokenizer, SENTENCE)[:4]
    with TemporaryDirectory() as work:
        (Path(work) / "run").mkdir()
        save_model(model, tokenizer, Path(work) / "run")
        folder = export_hf(Path(work) / "run", Path(work) / "hf")
        with torch.no_grad():
            yield folder, model(torch.tensor([prompt])).logits, prompt


def measure_end() -> Measured:
    """The length of an answer with a limit of forty tokens."""
    model, tokenizer = read_model()
    with _exported() as (folder, exact, prompt):
        theirs = folder.parent / "theirs"
        export_like_upstream(
            model.config.to_dict(), model.state_dict(), theirs
        )
        tokenizer.save_pretrained(theirs)
        bug, fix = (examine(f, prompt, exact) for f in (theirs, folder))
    return Measured(
        "What `generate` does with a complete sentence and a limit of 40 "
        "new tokens.",
        "goes on to the limit" if not bug.stops else "stops",
        "stops at its end" if fix.stops else "goes on to the limit",
        fix.stops and not bug.stops and bug.gap == fix.gap == 0,
    )  # fmt: skip


def need_own_code(folder: Path) -> None:
    """Mark a package as one that contains its model's code."""
    own = {"AutoConfig": "model.LMConfig",
           "AutoModelForCausalLM": "model.Transformer"}  # fmt: skip
    edit_json(folder, "config.json", {
        "model_type": "minimind", "architectures": ["Transformer"],
        "auto_map": own,
    })  # fmt: skip


def measure_code() -> Measured:
    """Load a package with code in it, without allowing that code."""
    from transformers import AutoModelForCausalLM

    def read(folder: Path) -> str:
        try:
            AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=False
            )
        except ValueError as error:
            return f"refuses: {type(error).__name__}"
        return "reads it"

    with _exported() as (folder, _, _):
        fix = read(folder)
        need_own_code(folder)
        bug = read(folder)
    return Measured(
        "What a loader does that is not allowed to run third-party code.",
        bug, fix, bug.startswith("refuses") and fix == "reads it",
    )  # fmt: skip


def measure_pairs() -> Measured:
    """The error of the logits, and whether there is a warning."""
    with _exported() as (folder, exact, prompt):
        spoilt = broken(folder, folder.parent / "spoilt", "other-pairs")
        bug, fix = (examine(f, prompt, exact) for f in (spoilt, folder))
    return Measured(
        "Largest error of the converted model's logits.",
        f"{bug.gap or 0:.2f}, without a warning", f"{fix.gap or 0:.2f}",
        (bug.gap or 0) > 0.01 and fix.gap == 0 and bug.verdict == "silent",
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="export-without-end",
        title="An exported model whose answers never end",
        commit="d65ef2c",
        date="2026-08-21",
        place="scripts/convert_model.py:43-61",
        quote="qwen_config = Qwen3Config(\n"
        "    **common_config, \n"
        "    ...\n"
        ")",
        came="2026-03-25 101d7df",
        kind=Kind.WRONG,
        noticed=Notice.ODD,
        cost="The config does not say which token ends an answer, so "
        "`generate` continues to its limit and invents more turns.",
        fix="Write eos, bos and pad into both config files.",
        measure=measure_end,
        test="tests/test_exhibits_packages.py::"
        "test_ours_says_where_an_answer_ends_and_upstreams_does_not",
        page="08_export",
    ),
    Exhibit(
        key="code-in-the-package",
        title="An exported model that only its own code can read",
        commit="8be4269",
        date="2024-08-28",
        place="export_model.py:14-44",
        quote="LMConfig.register_for_auto_class()\n"
        'Transformer.register_for_auto_class("AutoModelForCausalL'
        'M")',
        came="2024-08-28 8be4269",
        gone="2025-04-26 a62faf3",
        kind=Kind.STOP,
        noticed=Notice.ERROR,
        cost="Loading it means running its Python code; other tools cannot.",
        fix="Use the names and computations of a known architecture.",
        measure=measure_code,
        test="tests/test_export.py::"
        "test_a_process_without_us_reads_it_exactly",
        page="08_export",
    ),
    Exhibit(
        key="neighbouring-pairs",
        title="Rotary pairs in another order than the loader's",
        commit="8be4269",
        date="2024-08-28",
        place="model/model.py:44-48",
        quote="xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape"
        "[:-1], -1, 2))",
        came="2024-08-28 8be4269",
        gone="2025-04-26 a62faf3",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="The names and shapes of the weights are those that a loader "
        "expects, so nothing is reported, but the answers are wrong. The "
        "order is that of Meta's own code for Llama, and the loader is that "
        "of transformers.",
        fix="Pair the halves of a head, as transformers does for Qwen3 and "
        "Llama.",
        measure=measure_pairs,
        test="tests/test_exhibits_packages.py::"
        "test_pairs_laid_out_differently_are_wrong_and_silent",
        page="08_export",
    ),
)
