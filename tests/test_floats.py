"""Formats by hand agree with torch's on every bit."""

import math
import random

import pytest
import torch

from minimind_core.book.floats import (
    BFLOAT16,
    FLOAT16,
    FORMATS,
    decode,
    encode,
    nearest,
)

TORCH = {
    "float32": (torch.float32, torch.int32),
    "float16": (torch.float16, torch.int16),
    "bfloat16": (torch.bfloat16, torch.int16),
}
forms = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


def numbers():
    rng = random.Random(0)
    yield from (0.0, -0.0, 1.0, 0.1, 65504.0, 65519.9, 65520.0, 3.4e38)
    yield from (1e-45, 7e-46, 2.0**-25, 2.0**-24, 2.0**-14, math.inf)
    for _ in range(5000):
        yield rng.uniform(-1, 1) * 10 ** rng.uniform(-50, 40)


@forms
def test_the_limits_are_torchs(form):
    limits = torch.finfo(TORCH[form.name][0])
    assert form.max == limits.max
    assert form.smallest_normal == limits.smallest_normal
    assert form.epsilon == limits.eps
    assert form.bits == limits.bits


@forms
def test_bits_and_values_are_torchs(form):
    dtype, integer = TORCH[form.name]
    for x in numbers():
        rounded = torch.tensor(x, dtype=torch.float64).to(dtype)
        bits = rounded.view(integer).item() % 2**form.bits
        assert encode(x, form) == format(bits, f"0{form.bits}b"), x
        assert decode(encode(x, form), form) == rounded.item(), x


@forms
def test_not_a_number_and_infinity(form):
    assert math.isnan(decode(encode(math.nan, form), form))
    assert nearest(-math.inf, form) == -math.inf
    assert nearest(form.max * 1.01, form) == math.inf


@forms
def test_the_spacing_is_the_distance_to_the_neighbour(form):
    for x in (1.0, 1.5, 1000.0, form.smallest_normal, form.smallest):
        assert nearest(x + form.spacing(x), form) == x + form.spacing(x)
        assert nearest(x + form.spacing(x) / 4, form) == x


def test_what_the_book_says_about_small_and_large_steps():
    assert nearest(2049, FLOAT16) == 2048
    assert nearest(257, BFLOAT16) == 256
    assert nearest(FLOAT16.smallest / 2, FLOAT16) == 0
    assert nearest(FLOAT16.smallest / 2, BFLOAT16) > 0


@pytest.mark.parametrize("bits", ["", "0" * 15, "0" * 17, "2" * 16])
def test_other_bits_are_an_error(bits):
    with pytest.raises(ValueError, match="float16 has 16 bits"):
        decode(bits, FLOAT16)
