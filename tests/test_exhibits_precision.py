"""The dtype bugs, as they were, and what keeps them out of the package."""

import copy
import warnings

import pytest
import torch

from minimind_core.book.exhibits.precision import (
    FLAGS,
    HISTORY,
    LORA_FIRST,
    additive_mask_attention,
    in_place_residual,
    trial,
    vanished_share,
)
from minimind_core.checkpoint import load_checkpoint, save_checkpoint
from minimind_core.config import ModelConfig
from minimind_core.model import MiniMind
from minimind_core.precision import DeviceFacts, resolve

SHAPE = ModelConfig(
    vocab_size=96, hidden_size=32, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
)  # fmt: skip
A100 = DeviceFacts("cuda", "NVIDIA A100", True, (8, 0))
T4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5))


def test_the_table_of_nine():
    found = {
        (version.commit, flag): trial(version, flag)
        for version in HISTORY
        for flag in FLAGS
    }
    ran = {key: one.ran for key, one in found.items()}
    assert ran.pop(("e848487", "bfloat16")) == "bfloat16"
    assert set(ran.values()) == {"float16"}, "autocast() means float16"
    unsound = {key for key, one in found.items() if "unsound" in one.verdict}
    assert unsound == {("89d2601", "float32"), ("e848487", "float32")}
    right = {key for key, one in found.items() if one.verdict == "right"}
    assert right == {
        ("8be4269", "float16"), ("89d2601", "float16"),
        ("e848487", "float16"), ("e848487", "bfloat16"),
    }  # fmt: skip


def test_the_lora_script_began_unsound_in_its_default():
    assert "unsound" in trial(LORA_FIRST, "bfloat16").verdict


@pytest.mark.parametrize(
    "facts", [None, A100, T4], ids=["here", "A100", "T4"]
)
@pytest.mark.parametrize("flag", FLAGS)
def test_ours_runs_what_was_asked_and_scales_only_float16(flag, facts):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a stated fallback
        precision = resolve("auto", flag, facts=facts)
    assert precision.needs_scaler == (precision.dtype == "float16")
    if facts is not T4 and (facts or flag != "bfloat16"):
        assert precision.dtype == flag
    if precision.device == "cpu":
        weight = torch.ones(2, 2)
        with precision.autocast():
            ran = (weight @ weight).dtype
        assert ran == precision.torch_dtype
        assert precision.scaler().is_enabled() == precision.needs_scaler


def test_float32_is_not_autocast():
    with resolve("cpu", "float32").autocast():
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_small_step_survives_our_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = MiniMind(SHAPE)
    before = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.arange(24)[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    lost = {
        scales: vanished_share(before, model, scales=scales)
        for scales in (False, True)
    }
    assert lost[False] > 0.5 and lost[True] > 0.9  # as half
    weights = {n: p.detach() for n, p in model.named_parameters()}
    save_checkpoint(tmp_path, 1, weights, {"optimizer": {}}, {})
    (folder,) = (tmp_path / "checkpoints").iterdir()
    kept, _, _ = load_checkpoint(folder)
    for name, weight in weights.items():
        assert torch.equal(kept[name], weight), name


def test_minus_a_billion_is_minus_infinity_in_float16():
    mask = torch.tensor([[0, 0, 1, 1]])
    scores = torch.zeros(1, 4, 4)
    wide = additive_mask_attention(scores, mask)
    assert wide.isfinite().all()
    half = additive_mask_attention(scores.half(), mask)
    assert half[0, :2].isnan().all() and half[0, 2:].isfinite().all()


def test_an_addition_in_place_halves_the_stream():
    torch.manual_seed(0)
    model = MiniMind(SHAPE)
    block = model.model.layers[0]
    x = torch.randn(1, 5, 32)
    rope = model.model.rotary_emb(torch.arange(5)[None])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        theirs = in_place_residual(block, x, rope)
        ours = block(x, rope)
    assert theirs.dtype == torch.bfloat16 and ours.dtype == torch.float32
    with torch.no_grad():
        same = in_place_residual(block, x, rope)
        assert torch.equal(same, block(x, rope))
