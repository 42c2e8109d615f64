"""What every command shares: exit statuses, and how results and failures are written."""

from __future__ import annotations

import re
import sys

__all__ = [
    "EXIT_DIFFERENT",
    "EXIT_IMAGE",
    "EXIT_OK",
    "EXIT_STOPPED",
    "EXIT_USAGE",
    "EXIT_WEIGHTS",
    "OPTIONS",
    "as_options",
    "counted",
    "fail",
]

# What a shell script can tell apart (also in the README).
EXIT_OK, EXIT_IMAGE, EXIT_USAGE, EXIT_WEIGHTS, EXIT_DIFFERENT, EXIT_STOPPED = 0, 1, 2, 3, 4, 130

#: The arguments that the library's messages ask for, and the options that stand for them on a command line.
OPTIONS = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            *(
                "allow_private",
                "anonymous",
                "calibration",
                "column",
                "engine",
                "label_column",
                "labels",
                "max_classes",
                "memory",
            ),
            *("name", "out", "overwrite", "resume", "spill", "split", "top", "val"),
        )
    },
    "version": "--model-version",
}
_ARGUMENT = re.compile(rf"(?<![\w/?&])({'|'.join(OPTIONS)})=(?:True\b|'([^']*)'|(?=[A-Z0-9]))")


def as_options(message: str) -> str:
    """Translate a library's message for a command line: ``top=5, overwrite=True`` -> ``--top 5, --overwrite``."""

    def option(found: re.Match[str]) -> str:
        return OPTIONS[found[1]] + ("" if found[0].endswith("=True") else f" {found[2] or ''}")

    return _ARGUMENT.sub(option, message)


def counted(number: int, noun: str) -> str:
    """A number and its noun, singular or plural: "1 image", "2,000 images", "3 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def fail(message: str, status: int) -> int:
    """Print on stderr what went wrong; return the status."""
    print(f"resnext-hub: {as_options(message)}", file=sys.stderr)
    return status
