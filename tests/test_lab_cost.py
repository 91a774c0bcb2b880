"""The calculator in the page computes what `minimind_core.cost` computes."""

import itertools
import json
import math

import pytest
from conftest import LAB

from minimind_core import cost
from minimind_core.book.lab import cost_figures, cost_picture
from minimind_core.config import PRESETS, ModelConfig, TrainConfig

MODULE = (LAB / "page" / "cost.js").as_uri()

SHAPES = [
    *(preset.model for preset in PRESETS.values()),
    ModelConfig(
        vocab_size=301, hidden_size=24, num_hidden_layers=3,
        num_attention_heads=3, num_key_value_heads=1, head_dim=16,
        intermediate_size=56, tie_word_embeddings=False,
    ),
    ModelConfig(
        vocab_size=151_936, hidden_size=1024, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        intermediate_size=3072,
    ),
]  # fmt: skip
CASES = [
    {
        "shape": shape.to_dict(), "device": card._asdict(), "dtype": dtype,
        "optimizer": optimizer, "rows": rows, "length": length,
        "tokens": tokens, "utilization": utilization, "devices": devices,
        "price": 0.37,
    }
    for shape, card, dtype, (optimizer, rows, length), (
        tokens, utilization, devices,
    ) in itertools.product(
        SHAPES, cost.DEVICES.values(), ("auto", "float32"),
        (("muon", 1, 2), ("adamw", 7, 513), ("muon", 64, 2048)),
        ((1e6, 0.01, 1), (2.62144e9, 0.173, 3), (3e12, 1.0, 1000)),
    )
]  # fmt: skip

COMPUTE = """
const cost = await import(input.module);
return input.cases.map((one) => {
  const half = one.dtype !== "float32";
  const found = cost.estimate(one.shape, {...one, half});
  return {
    parameters: cost.parametersOf(one.shape),
    step: cost.trainingFlops(one.shape, one.rows, one.length),
    each: cost.flopsPerToken(one.shape, one.length),
    ...found,
    memory: cost.memoryOf(one.shape, one, half),
    needed: cost.needed(one.shape, one, half),
    most: cost.largestRows(one.shape, one, 0.9 * one.device.memory, half),
  };
});
"""


def expected(case):
    """The same, by the package."""
    shape = ModelConfig(**case["shape"])
    card, dtype = cost.DEVICES[case["device"]["name"]], case["dtype"]
    config = TrainConfig(
        seq_len=case["length"], micro_batch_size=case["rows"],
        optimizer=case["optimizer"],
    )  # fmt: skip
    found = cost.estimate(
        shape, tokens=case["tokens"], seq_len=case["length"], device=card,
        utilization=case["utilization"], price_per_hour=case["price"],
        devices=case["devices"], dtype=dtype,
    )  # fmt: skip
    half = dtype != "float32"
    return {
        "parameters": found.parameters,
        "step": cost.training_flops(shape, case["rows"], case["length"]),
        "each": cost.flops_per_token(shape, case["length"]),
        "flops": found.flops, "hours": found.hours, "price": found.price,
        "memory": {
            **cost.training_memory(shape, config),
            "copies": cost.copied_memory(shape) if half else 0,
            "passing": cost.passing_memory(shape, config),
        },
        "needed": cost.needed(shape, config, dtype),
        "most": cost.largest_rows(shape, config, 0.9 * card.memory, dtype),
    }  # fmt: skip


def test_the_page_computes_what_the_package_computes(javascript):
    found = javascript(COMPUTE, {"module": MODULE, "cases": CASES})
    assert len(found) == len(CASES) > 500
    for case, ours in zip(CASES, found, strict=True):
        theirs = expected(case)
        assert ours.keys() == theirs.keys()
        # Whole numbers are equal, since they are far below 2^53.
        assert ours["memory"] == theirs["memory"], case
        for name in ("parameters", "step", "needed", "most"):
            assert ours[name] == theirs[name], (name, case)
        for name in ("each", "flops", "hours", "price"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-9), case


def test_a_width_that_is_not_given_is_derived_alike(javascript):
    widths = [2, 24, 128, 384, 512, 768, 1000, 4096]
    found = javascript(
        """const cost = await import(input.module);
        return input.widths.map(cost.derivedWidth);""",
        {"module": MODULE, "widths": widths},
    )
    assert found == [
        ModelConfig(hidden_size=n, num_attention_heads=1,
                    num_key_value_heads=1).ffn_width
        for n in widths
    ]  # fmt: skip


GOOD = {
    "width": 768, "layers": 8, "heads": 8, "shared": 4, "inner": 2432,
    "vocabulary": 6400, "tokens": 2621.44, "length": 512, "rows": 32,
    "cards": 1, "utilization": 30, "price": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "typed", "says"),
    [
        ("tokens", "", "must be a number."),
        ("tokens", "none", "must be a number."),
        ("tokens", "0", "must be a number above 0."),
        ("tokens", "-3", "must be a number above 0."),
        ("tokens", "1e400", "must be at most 1,000,000,000,000."),
        ("width", "0", "must be a whole number above 0."),
        ("width", "770", "must divide into 8 heads of an even number"),
        ("layers", "2.5", "must be a whole number."),
        ("shared", "3", "must be a multiple of the key/value heads (3)."),
        ("length", "1", "must be a whole number of at least 2."),
        ("rows", "1e9", "must be at most 1,000,000."),
        ("utilization", "101", "must be at most 100."),
        ("price", "-1", "must be a number of at least 0."),
        ("price", "0", ""),
        ("tokens", " 2,621.44 ", ""),
        ("tokens", "2.6e3", ""),
    ],
)
def test_what_cannot_be_computed_is_said(javascript, name, typed, says):
    found = javascript(
        """const cost = await import(input.module);
        const given = {...input.good, [input.name]: cost.parse(input.typed)};
        return cost.problem(given);""",
        {"module": MODULE, "good": GOOD, "name": name, "typed": typed},
    )
    if says:
        assert found["name"] == name
        assert says in found["said"]
    else:
        assert found == {"name": "", "said": ""}


def test_the_page_gets_every_preset_and_card():
    figures = json.loads(json.dumps(cost_figures()))
    assert list(figures["presets"]) == list(PRESETS)
    assert list(figures["devices"]) == list(cost.DEVICES)
    base = figures["presets"]["base"]
    assert base["tokens"] == cost.tokens_of(PRESETS["base"].pretrain)
    assert base["shape"]["intermediate_size"] == 2432
    # In JSON nothing is infinite, and no figure is missing.
    for card in figures["devices"].values():
        assert all(math.isfinite(card[n]) for n in ("peak", "peak32"))
        assert 0 < card["utilization"][0] < card["utilization"][1] <= 1


def test_without_a_script_there_is_a_table_of_hours():
    said = cost_picture()
    assert said.count("<tr>") == 1 + len(cost.DEVICES)
    base = PRESETS["base"]
    hours = cost.hours_on(cost.DEVICES["T4"], base, base.pretrain)
    assert f"<td>{hours}</td>" in said
