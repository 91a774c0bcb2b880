"""`python -m minimind_core` is the `minimind` command."""

from minimind_core.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
