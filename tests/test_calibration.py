"""Precision on a CPU is measured; what is measured is injected here."""

import random
from pathlib import Path

import numpy
import pytest
import torch

from minimind_core import calibration
from minimind_core.calibration import (
    choose_precision,
    measure_step,
    shape_of,
    step_timings,
)
from minimind_core.config import ModelConfig, get_preset
from minimind_core.errors import ConfigError, PrecisionError
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer
from minimind_core.precision import DeviceFacts, StepTimings

XEON = DeviceFacts("cpu", "Xeon without AMX", True)
ZEN_4 = DeviceFacts("cpu", "Zen 4", True)
HASWELL = DeviceFacts("cpu", "Haswell", False)
T4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5))
APPLE = DeviceFacts("mps", "Apple GPU", True)
SHAPE = ModelConfig(
    vocab_size=64, hidden_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
    max_position_embeddings=32,
)  # fmt: skip
RUN = {"model": SHAPE, "batch_size": 4, "seq_len": 8}
SLOWER = StepTimings(0.228, 0.273, "4 rows of 8 tokens")
FASTER = StepTimings(0.273, 0.170, "4 rows of 8 tokens")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def measured(monkeypatch):
    """Each call of `measure_step`; it answers with `measured.answer`."""

    class Measured(list):
        answer = SLOWER

    calls = Measured()

    def fake(*arguments, **options):
        calls.append((arguments, options))
        return calls.answer

    monkeypatch.setattr(calibration, "measure_step", fake)
    return calls


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# --- the choice ---


def test_a_flag_without_speed_is_not_believed(measured):
    """An Intel Xeon with avx512_bf16 and without AMX, as measured there."""
    found = choose_precision(facts=XEON, **RUN)
    assert (found.dtype, found.needs_scaler) == ("float32", False)
    assert "float32 4.39 steps/s, bfloat16 3.66 steps/s" in found.reason
    assert "measured on 4 rows of 8 tokens" in found.reason


def test_a_faster_bfloat16_is_taken(measured):
    measured.answer = FASTER
    found = choose_precision(facts=ZEN_4, **RUN)
    assert (found.dtype, found.needs_scaler) == ("bfloat16", False)
    assert "1.61 times faster" in found.reason


@pytest.mark.parametrize(
    ("facts", "dtype", "expected"),
    [
        (T4, "auto", "float16"),
        (APPLE, "auto", "float32"),
        (HASWELL, "auto", "float32"),
        (XEON, "bfloat16", "bfloat16"),
        (XEON, "bf16", "bfloat16"),
        (XEON, "float32", "float32"),
        (XEON, "float16", "float16"),
    ],
)
def test_nothing_is_measured_where_it_decides_nothing(
    measured, facts, dtype, expected
):
    assert choose_precision("auto", dtype, facts=facts, **RUN).dtype == (
        expected
    )
    assert measured == []


def test_an_impossible_request_is_an_error_before_anything_is_measured(
    measured,
):
    with pytest.raises(PrecisionError, match="'cuda' was asked for"):
        choose_precision("cuda", facts=HASWELL, **RUN)
    with pytest.raises(PrecisionError, match="unknown dtype"):
        choose_precision("cpu", "float8", facts=XEON, **RUN)
    assert measured == []


def test_this_machine():
    found = choose_precision("cpu", **RUN)
    facts = calibration.detect_device("cpu")
    assert found.dtype in ("float32", "bfloat16")
    assert found.dtype == "float32" or facts.bf16
    assert ("steps/s" in found.reason) is facts.bf16


# --- the cache ---


def test_what_was_measured_is_remembered(measured, folder):
    first = choose_precision(facts=XEON, **RUN)
    assert choose_precision(facts=XEON, **RUN) == first
    assert len(measured) == 1
    assert len(entries(folder)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"facts": ZEN_4},
        {"model": SHAPE.replace(num_hidden_layers=2)},
        {"batch_size": 3},
        {"seq_len": 16},
        {"optimizer": "muon"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_time_depends_on_is_measured_anew(measured, change):
    choose_precision(**{"facts": XEON, **RUN})
    choose_precision(**{"facts": XEON, **RUN, **change})
    assert len(measured) == 2


def test_another_torch_or_number_of_threads_is_measured_anew(
    measured, monkeypatch
):
    choose_precision(facts=XEON, **RUN)
    monkeypatch.setattr(torch, "__version__", "9.9")
    choose_precision(facts=XEON, **RUN)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    choose_precision(facts=XEON, **RUN)
    assert len(measured) == 3


def test_what_does_not_change_the_time_is_not(measured):
    choose_precision(facts=XEON, **{**RUN, "batch_size": 1000})
    choose_precision(facts=XEON, **{**RUN, "batch_size": 2000})
    other = SHAPE.replace(eos_token_id=9, max_position_embeddings=999)
    choose_precision(
        facts=XEON, **{**RUN, "batch_size": 2000, "model": other}
    )
    assert len(measured) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace("0.228", '"fast"'),
        lambda text: text.replace("0.228", "-1"),
        lambda text: text.replace("0.228", "NaN"),
        lambda text: text.replace('"bfloat16"', '"bfloat61"'),
    ],
)
def test_a_damaged_file_is_measured_anew(measured, folder, damage):
    first = choose_precision(facts=XEON, **RUN)
    (file,) = entries(folder)
    text = file.read_text()
    assert damage(text) != text
    file.write_text(damage(text))
    assert choose_precision(facts=XEON, **RUN) == first
    assert len(measured) == 2
    assert choose_precision(facts=XEON, **RUN) == first
    assert len(measured) == 2, "and the file is whole again"


def test_a_cache_that_cannot_be_written_is_no_error(measured, folder):
    folder.write_text("a file where the folder should be")
    first = choose_precision(facts=XEON, **RUN)
    assert first.dtype == "float32"
    assert choose_precision(facts=XEON, **RUN) == first
    assert len(measured) == 2


# --- the measurement ---


def test_both_formats_are_timed():
    found = measure_step(SHAPE, 4, 8)
    assert found.float32 > 0 and found.bfloat16 > 0
    assert found.batch == "4 rows of 8 tokens"
    # Not a whole batch of thousands of rows, and at least one row.
    assert measure_step(SHAPE, 10_000, 512).batch == "2 rows of 512 tokens"
    assert measure_step(SHAPE, 4, 2000).batch == "1 row of 1024 tokens"


def test_whole_steps_are_taken_in_the_formats_they_are_counted_for(
    monkeypatch,
):
    dtypes, moves = [], []
    real = torch.nn.functional.linear

    def linear(x, weight, bias=None):
        out = real(x, weight, bias)
        dtypes.append(out.dtype)
        return out

    def build(model, config):
        built = build_optimizer(model, config)
        step = built.step
        built.step = lambda: (moves.append(dtypes[-1]), step())
        return built

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(calibration, "build_optimizer", build)
    monkeypatch.setattr(calibration, "SECONDS", 1e9)
    ticks = iter(range(10_000))
    # The clock says how many steps lie between two looks at it.
    monkeypatch.setattr(
        calibration, "_clock", lambda: lambda: next(ticks) + len(moves)
    )
    found = measure_step(SHAPE, 4, 8)
    expected = [torch.float32, torch.bfloat16]
    assert moves == expected * (1 + calibration.ROUNDS), "they take turns"
    assert found.float32 == found.bfloat16 == 2


def test_the_fastest_step_counts(monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 1e9)
    # Warm-up aside: float32 takes 5, 3, 4, 3, 9 and bfloat16 2, 8, 8, 8, 8.
    spent = iter([5, 2, 3, 8, 4, 8, 3, 8, 9, 8])
    now = [0.0, False]

    def clock():
        if now[1]:
            now[0] += next(spent)
        now[1] = not now[1]
        return now[0]

    monkeypatch.setattr(calibration, "_clock", lambda: clock)
    best = calibration._best_times(lambda dtype: None)
    assert best == {"float32": 3, "bfloat16": 2}


def test_nobody_waits_for_a_slow_machine(monkeypatch):
    steps = []
    monkeypatch.setattr(calibration, "SECONDS", -1.0)
    calibration._best_times(steps.append)
    assert steps == ["float32", "bfloat16"] * 2


def test_processor_time_is_taken_with_one_thread_only(monkeypatch):
    import time

    fine = time.get_clock_info("process_time").resolution < 1e-4
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert (calibration._clock() is time.process_time) is fine
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert calibration._clock() is time.perf_counter

    class Coarse:  # Windows
        resolution = 0.015625

    monkeypatch.setattr(time, "get_clock_info", lambda name: Coarse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert calibration._clock() is time.perf_counter


def train(measuring: bool) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model = MiniMind(SHAPE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        if measuring:
            measure_step(model, 4, 8, optimizer="muon")
        ids = torch.randint(64, (4, 8))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_a_training_is_the_same_to_the_bit_with_a_measurement():
    for a, b in zip(train(False), train(True), strict=True):
        assert torch.equal(a, b)


def test_no_random_state_is_touched():
    def states():
        kinds, numbers, *rest = numpy.random.get_state()
        return (
            torch.get_rng_state().tolist(), random.getstate(),
            (kinds, numbers.tolist(), *rest),
        )  # fmt: skip

    before = states()
    measure_step(SHAPE, 2, 4)
    assert states() == before


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_can_be_measured_where_nothing_learns(mode):
    model = MiniMind(SHAPE).eval()
    with mode():
        found = measure_step(model, 2, 4)
        assert not torch.is_grad_enabled()
    assert found.float32 > 0
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


# --- models ---


def hugging_face_model():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE.to_hf()))


def test_a_hugging_face_model_is_measured_by_its_shape():
    from peft import LoraConfig, get_peft_model

    model = hugging_face_model()
    for one in (
        model, get_peft_model(model, LoraConfig(target_modules=["q_proj"])),
    ):  # fmt: skip
        found = shape_of(one)
        assert found is not None
        assert found.num_parameters() == SHAPE.num_parameters()
        assert measure_step(one, 2, 4).bfloat16 > 0


def test_a_model_of_another_kind_gets_float32_and_the_reason(measured):
    other = torch.nn.Linear(2, 2)
    assert shape_of(other) is None
    found = choose_precision(facts=ZEN_4, **{**RUN, "model": other})
    assert found.dtype == "float32"
    assert "Linear" in found.reason and "cannot be measured" in found.reason
    assert measured == []
    assert step_timings(other, 2, 4, facts=ZEN_4) is None


def test_a_model_of_another_kind_cannot_be_measured():
    with pytest.raises(ConfigError, match=r"Linear: .*num_key_value"):
        measure_step(torch.nn.Linear(2, 2), 2, 4)


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 10.5}, {"num_attention_heads": 3}, {"vocab_size": 0},
     {"num_key_value_heads": None}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_shape_that_we_cannot_build_is_none(change):
    class Config:
        pass

    class Other:
        config = Config()

    for name, value in {**SHAPE.to_dict(), **change}.items():
        if name != "head_dim":
            setattr(Other.config, name, value)
    assert shape_of(Other()) is None


def test_a_large_model_is_measured_by_a_part_of_it():
    base = get_preset("base").model
    large = base.replace(num_hidden_layers=48, vocab_size=151_936)
    capped = calibration._capped(large, 128)
    assert capped.vocab_size == calibration.VOCABULARY
    assert 1 <= capped.num_hidden_layers < 48
    assert capped.num_parameters() <= calibration.PARAMETERS
    assert capped.hidden_size == large.hidden_size
    # One layer is left of a giant, whatever its size.
    giant = large.replace(hidden_size=8192, intermediate_size=28672)
    assert calibration._capped(giant, 128).num_hidden_layers == 1
    tiny = get_preset("tiny").model
    assert calibration._capped(tiny, 128).num_parameters() == (
        tiny.num_parameters()
    )
