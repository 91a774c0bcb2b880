"""A widget in which readers flip the bits of numbers."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from minimind_core.book.floats import FORMATS, decode, encode
from minimind_core.book.viz.figures import as_html

if TYPE_CHECKING:
    from IPython.display import HTML

def bit_field(number: float, alt: str) -> HTML:
    """Show the bits of a number in float32, float16 and bfloat16.

    Each bit is a button. Flipping one gives a new number, which the other two
    formats then round. It needs no kernel, because its script is in the page.
    If scripts are disabled, it only shows `number`.

    Parameters
    ----------
    number : float
        The initial number.
    alt : str
        Description for a screen reader.
    """
    rows = []
    for form in FORMATS:
        bits = encode(number, form)
        parts = (
            ("sign", bits[:1]),
            ("exponent", bits[1 : 1 + form.exponent_bits]),
            ("mantissa", bits[1 + form.exponent_bits :]),
        )
        fields = "".join(
            f'<span class="mm-part"><small>{part}, {len(digits)}</small>'
            + "".join(_BIT.format(part=part, bit=digit) for digit in digits)
            + "</span>"
            for part, digits in parts
        )
        rows.append(
            f'<div class="mm-row" data-e="{form.exponent_bits}" '
            f'data-m="{form.mantissa_bits}"><b>{form.name}</b> '
            f'<output>{decode(bits, form):.9g}</output>'
            f'<div class="mm-bits" role="group" aria-label="bits of '
            f'{form.name}">{fields}</div></div>'
        )
    label = html.escape(alt, quote=True)
    return as_html(
        f'<div class="mm-floats" role="group" aria-label="{label}">'
        f'<style>{_BITS_STYLE}</style><label>a number <input type="text" '
        f'inputmode="decimal" size="14" value="{number:.9g}"></label>'
        f'{"".join(rows)}</div><script>{_BITS_SCRIPT}</script>'
    )


_BIT = (
    '<button type="button" class="mm-{part}" data-bit="{bit}">{bit}</button>'
)

_BITS_STYLE = """
.mm-floats{border:1px solid currentColor;border-radius:6px;padding:.8em}
.mm-floats input{font:inherit;max-width:100%;padding:.1em .4em}
.mm-row{margin-top:.8em}
.mm-bits{display:flex;flex-wrap:wrap;gap:.3em .7em;margin-top:.2em}
.mm-part{display:inline-flex;flex-wrap:wrap;max-width:100%}
.mm-part small{flex-basis:100%}
.mm-part button{font:600 1rem/1 monospace;width:1.55rem;height:1.9rem;
padding:0;margin:0 1px 2px 0;color:inherit;background:transparent;
border:1px solid currentColor;border-radius:3px;cursor:pointer}
.mm-part button.mm-sign{border-style:double;border-width:3px}
.mm-part button.mm-exponent{border-bottom-width:4px}
.mm-part button[data-bit="1"]{background:color-mix(in srgb,
currentColor 22%,transparent)}
"""

_BITS_SCRIPT = """
(() => {
  const root = document.currentScript.previousElementSibling;
  const field = root.querySelector("input");
  const rows = [...root.querySelectorAll(".mm-row")];
  const nearestEven = x => {
    const low = Math.floor(x), rest = x - low;
    return rest > .5 || (rest === .5 && low % 2) ? low + 1 : low;
  };
  // The same steps as minimind_core.book.floats, which a test compares.
  const power = x => {
    let e = Math.max(Math.floor(Math.log2(x)), -1074);
    while (2 ** e > x) e--;
    while (2 ** (e + 1) <= x) e++;
    return e;
  };
  const encode = (x, E, M) => {
    const bias = 2 ** (E - 1) - 1, ones = 2 ** E - 1, a = Math.abs(x);
    let exponent = ones, mantissa = Number.isNaN(x) ? 2 ** (M - 1) : 0;
    if (Number.isFinite(x)) {
      let e = a === 0 ? 1 - bias : Math.max(power(a), 1 - bias);
      let steps = nearestEven(a / 2 ** e * 2 ** M);
      if (steps === 2 ** (M + 1)) { steps /= 2; e += 1; }
      if (e <= bias) {
        const normal = steps >= 2 ** M;
        exponent = normal ? e + bias : 0;
        mantissa = normal ? steps - 2 ** M : steps;
      }
    }
    const sign = x < 0 || Object.is(x, -0) ? "1" : "0";
    return sign + exponent.toString(2).padStart(E, "0")
      + mantissa.toString(2).padStart(M, "0");
  };
  const decode = (bits, E, M) => {
    const bias = 2 ** (E - 1) - 1, sign = bits[0] === "1" ? -1 : 1;
    const exponent = parseInt(bits.slice(1, 1 + E), 2);
    const mantissa = parseInt(bits.slice(1 + E), 2) / 2 ** M;
    if (exponent === 2 ** E - 1) return mantissa ? NaN : sign * Infinity;
    if (exponent === 0) return sign * mantissa * 2 ** (1 - bias);
    return sign * (1 + mantissa) * 2 ** (exponent - bias);
  };
  const digits = x => Number.isFinite(x) && !Object.is(x, -0)
    ? String(Number(x.toPrecision(9))) : Object.is(x, -0) ? "-0" : String(x);
  const show = (x, except) => rows.forEach(row => {
    const E = +row.dataset.e, M = +row.dataset.m;
    const buttons = [...row.querySelectorAll("button")];
    const bits = row === except
      ? buttons.map(b => b.dataset.bit).join("") : encode(x, E, M);
    buttons.forEach((button, i) => {
      button.dataset.bit = button.textContent = bits[i];
      const part = button.className.slice(3);
      button.setAttribute("aria-label", `${part} bit ${i}: ${bits[i]}`);
    });
    row.querySelector("output").textContent = digits(decode(bits, E, M));
  });
  rows.forEach(row => row.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (!button) return;
    button.dataset.bit = button.dataset.bit === "1" ? "0" : "1";
    const bits = [...row.querySelectorAll("button")]
      .map(b => b.dataset.bit).join("");
    const x = decode(bits, +row.dataset.e, +row.dataset.m);
    field.value = digits(x);
    show(x, row);
  }));
  field.addEventListener("input", () => {
    const text = field.value.trim().toLowerCase();
    const x = /^[-+]?inf/.test(text)
      ? (text[0] === "-" ? -Infinity : Infinity) : Number(text || NaN);
    show(x);
  });
  show(Number(field.value));
})();
"""
