"""What a run costs, counted, against what really runs."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minimind_core import cost
from minimind_core.book import scaling
from minimind_core.config import PRESETS, ModelConfig, get_preset
from minimind_core.errors import ConfigError
from minimind_core.model import MiniMind
from minimind_core.optim import build_optimizer

TINY = get_preset("tiny").model
SHAPES = {
    "tiny": TINY,
    "no sharing of heads": TINY.replace(num_key_value_heads=4),
    "untied": TINY.replace(tie_word_embeddings=False),
    "heads wider than the stream": ModelConfig(
        vocab_size=301, hidden_size=24, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=1, head_dim=16,
        intermediate_size=56,
    ),
}  # fmt: skip
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
SETTINGS = get_preset("tiny").pretrain.replace(batch_size=3, seq_len=17)


def step(shape, config):
    """A model and an optimizer after one step, and its batch."""
    model = MiniMind(shape)
    size = (config.batch_size, config.seq_len)
    ids = torch.randint(shape.vocab_size, size)
    optimizer = build_optimizer(model, config)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    return model, optimizer, ids


# --- operations ------------------------------------------------------------


@shapes
@pytest.mark.parametrize(("rows", "length"), [(4, 32), (3, 17), (1, 2)])
def test_operations_are_those_that_run(shape, rows, length):
    ids = torch.randint(shape.vocab_size, (rows, length))
    model = MiniMind(shape)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            loss = model(ids, labels=ids).loss
            forward = counter.get_total_flops()
            loss.backward()
    total = cost.training_flops(shape, rows, length)
    assert total == counter.get_total_flops() == 3 * forward


def test_a_token_costs_six_for_each_weight_and_attention_more():
    shape = get_preset("base").model
    weights = shape.num_parameters() - shape.parameters_by_part()["norms"]
    channels = shape.num_attention_heads * shape.head_width
    exact = 6 * weights + 12 * shape.num_hidden_layers * channels * 512
    # The last position of a row does not meet the head.
    head = 6 * shape.vocab_size * shape.hidden_size / 512
    assert cost.flops_per_token(shape, 512) == exact - head


def test_tokens_of_a_run():
    assert cost.tokens_of(get_preset("base").pretrain) == 20_000 * 256 * 512


# --- hours -----------------------------------------------------------------


def test_an_estimate_by_hand():
    card = cost.Device("by hand", 1e12, 1e9, "float16")
    found = cost.estimate(
        TINY, tokens=1e9, seq_len=128, device=card, utilization=0.5,
        price_per_hour=2.0, devices=4,
    )  # fmt: skip
    assert found.parameters == TINY.num_parameters()
    assert found.flops == 1e9 * cost.flops_per_token(TINY, 128)
    assert found.hours == pytest.approx(found.flops / 2e12 / 3600)
    assert found.price == pytest.approx(8 * found.hours)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_utilization_is_a_share(share):
    with pytest.raises(ConfigError, match="utilization"):
        cost.estimate(TINY, tokens=1, seq_len=8, utilization=share,
                      device=cost.DEVICES["T4"])  # fmt: skip


def test_no_devices_do_nothing():
    with pytest.raises(ConfigError, match="devices"):
        cost.estimate(TINY, tokens=1, seq_len=8, utilization=1.0,
                      device=cost.DEVICES["T4"], devices=0)  # fmt: skip


def test_exchanging_gradients_is_not_divided_by_the_devices():
    card = cost.DEVICES["H100"]
    config = get_preset("base").pretrain
    shape = get_preset("base").model

    def seconds(devices):
        return scaling.step_seconds(
            shape, config, device=card, utilization=0.3, devices=devices,
            bandwidth=1e9,
        )  # fmt: skip

    alone, two, many = seconds(1), seconds(2), seconds(1000)
    assert alone[1] == 0.0
    assert two[0] == pytest.approx(alone[0] / 2)
    # Two send half their gradients twice: all of them once.
    assert two[1] == pytest.approx(4 * shape.num_parameters() / 1e9)
    assert two[1] < many[1] < 2 * two[1]


def test_in_float32_another_peak_counts():
    card = cost.DEVICES["T4"]
    one = {"tokens": 1e9, "seq_len": 128, "device": card, "utilization": 0.5}
    half = cost.estimate(TINY, **one)
    single = cost.estimate(TINY, **one, dtype="float32")
    assert single.hours / half.hours == pytest.approx(65 / 8.1)


def test_a_range_of_hours_is_the_estimate_at_both_ends():
    base = get_preset("base")
    for name, span in cost.hours_by_card("base", base.pretrain).items():
        card = cost.DEVICES[name]
        low, high = card.utilization
        for hours, share in ((span.low, high), (span.high, low)):
            assert hours == pytest.approx(cost.estimate(
                base.model, tokens=cost.tokens_of(base.pretrain),
                seq_len=512, device=card, utilization=share,
            ).hours)  # fmt: skip


def test_the_cost_of_a_preset_is_that_of_all_its_trainings():
    small = get_preset("small")
    whole = cost.hours_by_card("small")["T4"]
    parts = [
        cost.hours_by_card(small.model, getattr(small, stage))["T4"]
        for stage in ("pretrain", "sft", "lora")
    ]
    assert whole.high == pytest.approx(sum(part.high for part in parts))
    assert whole.low == pytest.approx(sum(part.low for part in parts))
    with pytest.raises(ConfigError, match="pass a TrainConfig"):
        cost.hours_by_card(small.model)


def test_the_preset_t4_takes_an_hour_of_a_t4_at_most():
    span = cost.hours_by_card("t4")["T4"]
    assert 10 / 60 < span.low < span.high <= 1
    # About as many tokens as are best for the compute, see chapter 10.
    preset = get_preset("t4")
    share = cost.tokens_of(preset.pretrain) / preset.model.num_parameters()
    assert 10 < share < 20
    card = cost.DEVICES["T4"]
    for stage in cost.TRAINED:
        size = cost.needed(preset.model, getattr(preset, stage))
        assert size < cost.ROOM * card.memory


@pytest.mark.parametrize(
    ("span", "said"),
    [
        ((0.001, 0.01), "less than a minute"),
        ((19 / 60, 56.2 / 60), "19 to 56 minutes"),
        ((0.7 / 60, 3.7 / 60), "0.7 to 3.7 minutes"),
        ((8.49, 25.47), "8.5 to 25 hours"),
        ((819.2, 8194.4), "819 to 8,194 hours"),
        ((2.0, 10.04), "2 to 10 hours"),
        ((1 / 60, 1.01 / 60), "1 minute"),
        ((3.0, 3.0), "3 hours"),
    ],
)
def test_a_range_in_words(span, said):
    assert str(cost.Span(*span)) == said
    low, high = span
    assert cost.Span(*span).middle == pytest.approx(math.sqrt(low * high))


def test_a_description_has_tokens_memory_and_each_card():
    said = cost.describe_cost("small")
    assert "25.8M parameters, at most 3,310M tokens, 7.7 GB" in said
    assert "estimated" in said
    for name, span in cost.hours_by_card("small").items():
        assert f"  {name:<9} {span}, at " in said
    assert "too large" not in said
    rows = get_preset("base").pretrain.replace(micro_batch_size=100)
    said = cost.describe_cost("base", rows)
    assert said.count("too large for its memory") == 5  # H100, H200 do
    assert "at 30% to 10%" in said
    assert "at 70% to 20%" in cost.describe_cost("base", dtype="float32")


def test_presets_side_by_side():
    lines = cost.compare_costs().splitlines()
    assert [line.split()[0] for line in lines] == ["size", *PRESETS]
    assert max(map(len, lines)) <= 78
    assert str(cost.hours_by_card("base")["T4"]).split()[2] in lines[-1]


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", None),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("Apple GPU", None),
    ],
)
def test_a_card_is_known_by_the_name_of_its_driver(name, card):
    found = cost.find_card(name)
    assert (found and found.name) == card
    device, called = cost.device_called("cuda", name)
    assert device.name == (card or "T4")
    assert ("counted as a T4" in called) == (card is None)


def test_a_long_training_is_foreseen_and_a_short_one_is_not():
    small, tiny = get_preset("small"), get_preset("tiny")
    said = cost.foresee(small.model, small.pretrain, "cuda", "Tesla T4")
    span = cost.hours_by_card("small", small.pretrain)["T4"]
    assert f"an estimated {span} on this T4" in said
    assert "20,000 steps of up to 131,072 tokens" in said
    for kind, name in (("cuda", "Tesla T4"), ("cpu", "any")):
        assert cost.foresee(tiny.model, tiny.pretrain, kind, name) == ""
    assert cost.foresee(small.model, small.pretrain, "cpu", "any")


# --- memory ----------------------------------------------------------------


@shapes
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_is_what_is_held(shape, optimizer):
    config = SETTINGS.replace(optimizer=optimizer)
    model, built, ids = step(shape, config)
    held = {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": sum(p.grad.nbytes for p in model.parameters()),
        "optimizer": scaling.state_bytes(built),
        "activations": scaling.kept_for_backward(
            model, input_ids=ids, labels=ids
        ),
    }
    assert held == cost.training_memory(shape, config)


def test_autocast_keeps_less_of_activations_and_a_copy_of_the_weights():
    model, _, ids = step(TINY, SETTINGS)
    whole = scaling.kept_for_backward(model, input_ids=ids, labels=ids)
    with torch.autocast("cpu", torch.bfloat16):
        half = scaling.kept_for_backward(model, input_ids=ids, labels=ids)
    copies = cost.copied_memory(TINY)
    # The norms have none.
    assert copies / 2 == (
        TINY.num_parameters() - TINY.parameters_by_part()["norms"]
    )
    assert 0.75 < (half - copies) / whole < 0.85


def test_only_the_micro_batch_is_held_at_a_time():
    config = get_preset("base").pretrain
    shape = get_preset("base").model
    whole = cost.training_memory(shape, config.replace(micro_batch_size=None))
    parts = cost.training_memory(shape, config)
    assert parts["weights"] == whole["weights"]
    assert whole["activations"] / parts["activations"] == pytest.approx(
        256 / 32, rel=1e-3
    )


def test_the_largest_number_of_rows_fits_and_one_more_does_not():
    shape, config = get_preset("base").model, get_preset("base").pretrain
    room = 16e9
    rows = cost.largest_rows(shape, config, room)

    def needed(n):
        one = config.replace(micro_batch_size=n)
        parts = cost.training_memory(shape, one)
        return sum(parts.values()) + cost.passing_memory(shape, one)

    assert needed(rows) <= room < needed(rows + 1)
    assert cost.largest_rows(shape, config, 1e8) == 0
    # Copies in two bytes leave room for fewer.
    half = cost.largest_rows(shape, config, room, "auto")
    assert needed(half) + cost.copied_memory(shape) <= room
    assert needed(half + 1) + cost.copied_memory(shape) > room


# --- this machine ----------------------------------------------------------


def test_training_is_timed_in_counted_operations():
    config = SETTINGS.replace(batch_size=2)
    timing = scaling.time_training(TINY, config, steps=1)
    assert timing.seconds > 0
    flops = cost.training_flops(TINY, 2, config.seq_len)
    assert timing.rate == pytest.approx(flops / timing.seconds)
    assert scaling.matmul_rate(64, seconds=0.01) > 1e6


# --- loss against compute --------------------------------------------------


def test_a_power_law_is_found_again():
    xs = [1e9, 1e10, 3e11, 1e12]
    law = scaling.fit_power_law(xs, [5.0 * x**-0.3 for x in xs])
    assert law.scale == pytest.approx(5.0)
    assert law.exponent == pytest.approx(0.3)
    assert law.spread == pytest.approx(1.0)
    assert law(1e13) == pytest.approx(5.0 * 1e13**-0.3)


def test_the_spread_is_that_of_the_factors():
    xs = [1.0, 10.0, 100.0, 1000.0]
    ys = [2.0, 0.5, 0.5, 2.0]  # a line is no help: two up, two down
    law = scaling.fit_power_law(xs, ys)
    assert law.exponent == pytest.approx(0.0, abs=1e-12)
    assert math.log(law.spread) == pytest.approx(math.log(2.0))


@pytest.mark.parametrize(
    ("xs", "ys"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 0, 2])]
)
def test_a_power_law_needs_positive_points(xs, ys):
    with pytest.raises(ConfigError, match="positive"):
        scaling.fit_power_law(xs, ys)


def test_the_frontier_has_no_point_that_a_cheaper_one_beats():
    points = [(3, 1.0), (1, 3.0), (2, 3.5), (4, 1.0), (5, 0.5)]
    assert scaling.frontier(points) == [(1, 3.0), (3, 1.0), (5, 0.5)]
