/**
 * A matrix, and the low-rank change of chapter 9 beside it: PyTorch's
 * `nn.Linear` and the `LoRALinear` of `minimind_core/lora.py` in one.
 */

/** Multiply a vector by a matrix, and by its low-rank change (chapter 9). */
export class Linear {
  /**
   * @param {Float32Array} weight Row by row, (rows, columns).
   * @param {number} rows
   * @param {number} columns
   */
  constructor(weight, rows, columns) {
    this.weight = weight;
    this.rows = rows;
    this.columns = columns;
    /** @type {{A: Linear, B: Linear, scale: number} | null} */
    this.lora = null;
    this.small = new Float32Array(0);
    this.change = new Float32Array(0);
  }

  /**
   * @param {Float32Array} x (columns)
   * @param {Float32Array} y (rows), written to.
   * @param {boolean} adapted Whether the low-rank change is added.
   */
  forward(x, y, adapted = false) {
    const { weight, rows, columns } = this;
    const whole = columns - (columns % 4);
    for (let r = 0, at = 0; r < rows; r++, at += columns) {
      // Four sums at a time: a processor adds them side by side.
      let a = 0, b = 0, c = 0, d = 0;
      for (let n = 0; n < whole; n += 4) {
        a += weight[at + n] * x[n];
        b += weight[at + n + 1] * x[n + 1];
        c += weight[at + n + 2] * x[n + 2];
        d += weight[at + n + 3] * x[n + 3];
      }
      for (let n = whole; n < columns; n++) a += weight[at + n] * x[n];
      y[r] = a + b + (c + d);
    }
    if (!adapted || this.lora === null) return;
    const { A, B, scale } = this.lora;
    A.forward(x, this.small);
    B.forward(this.small, this.change);
    for (let r = 0; r < rows; r++) y[r] += this.change[r] * scale;
  }

  /**
   * Put a low-rank change beside the matrix: `scale * B A`.
   * @param {Linear} A (rank, columns)
   * @param {Linear} B (rows, rank)
   * @param {number} scale
   */
  adapt(A, B, scale) {
    this.lora = { A, B, scale };
    this.small = new Float32Array(A.rows);
    this.change = new Float32Array(B.rows);
  }
}
