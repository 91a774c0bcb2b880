"""What a run costs, counted, against what really runs."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minimind_core import cost
from minimind_core.book import scaling
from minimind_core.config import ModelConfig, get_preset
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
    copies = 2 * TINY.num_parameters()
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
