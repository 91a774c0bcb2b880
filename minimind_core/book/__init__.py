"""What only the book's pages need, on top of the library.

The trained models and the studies that the chapters show (`stages`,
`studies`), the bugs that they reproduce (`exhibits`), their figures and
widgets (`viz`), and the set-up of a notebook (`colab`). The library never
imports this package; `make lint` checks that.
"""
