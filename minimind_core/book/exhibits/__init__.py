"""Reproductions of real bugs, isolated from the rest of the package.

Each module reproduces defects of one kind in small, newly written functions,
which are wrong in the same way as the original. Nothing else in the package
uses them. The book runs each one beside the correct code, and tests check
that the package does not have the same defect. Each exhibit can be measured
in a second or two, on the small models and data in `bench`.
"""

from minimind_core.book.exhibits.catalogue import Exhibit, catalogue

__all__ = ["Exhibit", "catalogue"]
