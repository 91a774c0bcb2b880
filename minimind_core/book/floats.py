"""Floating-point formats, bit by bit.

    from minimind_core.book.floats import FLOAT16, decode, encode
    encode(0.1, FLOAT16)                   # '0010111001100110'
    decode("0010111001100110", FLOAT16)    # 0.0999755859375

This module is written by hand for illustration; tests check that it agrees
with torch on every bit. The formats are those of IEEE 754-2019,
and bfloat16, which is float32 with the last 16 bits cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FloatFormat:
    """A floating-point format: the bits of its exponent and mantissa.

    Parameters
    ----------
    name : str
        The name of the dtype in torch.
    exponent_bits, mantissa_bits : int
        One more bit holds the sign.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int

    @property
    def bits(self) -> int:
        """Total number of bits."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """The exponent bias, which is also the largest exponent."""
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def max(self) -> float:
        """The largest finite number."""
        return (2 - 2.0**-self.mantissa_bits) * 2.0**self.bias

    @property
    def smallest_normal(self) -> float:
        """The smallest normal number; smaller ones lose digits."""
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest positive number; half of it rounds to zero."""
        return self.smallest_normal * 2.0**-self.mantissa_bits

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next larger number."""
        return 2.0**-self.mantissa_bits

    def spacing(self, x: float) -> float:
        """Return the distance between adjacent numbers near `x`.

        Parameters
        ----------
        x : float
            Finite, and within the format's range.
        """
        _, exponent = math.frexp(max(abs(x), self.smallest_normal))
        return 2.0 ** (exponent - 1) * self.epsilon


FLOAT32 = FloatFormat("float32", 8, 23)
FLOAT16 = FloatFormat("float16", 5, 10)
BFLOAT16 = FloatFormat("bfloat16", 8, 7)
FORMATS = (FLOAT32, FLOAT16, BFLOAT16)


def decode(bits: str, form: FloatFormat) -> float:
    """Return the number that a string of bits represents.

    Parameters
    ----------
    bits : str
        Zeros and ones: sign, exponent, mantissa.
    form : FloatFormat

    Raises
    ------
    ValueError
        If the number of bits is wrong.
    """
    if len(bits) != form.bits or set(bits) - {"0", "1"}:
        raise ValueError(f"{form.name} has {form.bits} bits, not {bits!r}")
    sign = -1 if bits[0] == "1" else 1
    exponent = int(bits[1 : 1 + form.exponent_bits], 2)
    mantissa = int(bits[1 + form.exponent_bits :], 2) * form.epsilon
    if exponent == 2**form.exponent_bits - 1:  # all ones
        return sign * math.inf if mantissa == 0 else math.nan
    if exponent == 0:  # subnormal: no leading 1, down to zero
        return sign * mantissa * form.smallest_normal
    return sign * (1 + mantissa) * 2.0 ** (exponent - form.bias)


def encode(x: float, form: FloatFormat) -> str:
    """Return the bits of the number nearest to `x`.

    Ties round to the neighbour whose last bit is 0, as in hardware; numbers
    that are too large become infinite.

    Parameters
    ----------
    x : float
    form : FloatFormat
    """
    sign = "1" if math.copysign(1, x) < 0 else "0"
    ones = 2**form.exponent_bits - 1
    if math.isnan(x):
        return sign + _field(ones, form.exponent_bits) + _field(
            2 ** (form.mantissa_bits - 1), form.mantissa_bits
        )
    steps = 0.0 if math.isinf(x) else abs(x) / form.spacing(x)
    # round() goes to the even neighbour, and steps is exact: a power of two
    # was divided by.
    rounded = round(steps)
    value = rounded * form.spacing(x) if rounded else 0.0
    if math.isinf(x) or value > form.max:
        exponent, mantissa = ones, 0
    elif value < form.smallest_normal:
        exponent, mantissa = 0, round(value / form.smallest)
    else:
        _, power = math.frexp(value)
        exponent = power - 1 + form.bias
        mantissa = round((value / 2.0 ** (power - 1) - 1) / form.epsilon)
    return (
        sign
        + _field(exponent, form.exponent_bits)
        + _field(mantissa, form.mantissa_bits)
    )


def nearest(x: float, form: FloatFormat) -> float:
    """Round `x` to a format."""
    return decode(encode(x, form), form)


def _field(value: int, width: int) -> str:
    return format(value, f"0{width}b")
