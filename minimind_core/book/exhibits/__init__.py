"""Bugs, kept alive where they can do no harm.

Each module shows defects of one kind, written anew as small functions: what
they compute is wrong in the way that the original was. None of it is used by
anything else in the package; the book runs it beside the right way, and
tests hold that the package does not do the same. Each exhibit can measure
itself in a second or two, on the small things in `bench`.
"""

from minimind_core.book.exhibits.catalogue import Exhibit, catalogue

__all__ = ["Exhibit", "catalogue"]
