"""`python -m runtimes.reasoning`, and what the script `toolscore-reason` starts."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command, if what it needs is installed."""
    try:
        from runtimes.reasoning.command import run
    except ImportError as exc:
        print(f"{exc}: pip install 'toolscore-client[reasoning]' brings what it needs", file=sys.stderr)
        raise SystemExit(2) from None
    run()


if __name__ == "__main__":
    main()
