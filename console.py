"""What every command shares: exit statuses, and how a failure is said."""

from __future__ import annotations

import sys

__all__ = ["EXIT_DIFFERENT", "EXIT_IMAGE", "EXIT_OK", "EXIT_STOPPED", "EXIT_USAGE", "EXIT_WEIGHTS", "fail"]

# What a shell script can tell apart (also in the README).
EXIT_OK, EXIT_IMAGE, EXIT_USAGE, EXIT_WEIGHTS, EXIT_DIFFERENT, EXIT_STOPPED = 0, 1, 2, 3, 4, 130


def fail(message: str, status: int) -> int:
    """Say on stderr what went wrong; give the status back."""
    print(f"resnext-hub: {message}", file=sys.stderr)
    return status
