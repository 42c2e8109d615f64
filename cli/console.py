"""Print results and failures; shared by all commands."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from ..errors import EXIT_OK, EXIT_STOPPED, EXIT_USAGE, ResNeXtHubError, StoppedError

#: The arguments that the library's messages ask for, and the options that stand for them on a command line.
_SAME = "allow_private anonymous calibration column device engine label_column label_separator label_table labels"
_SAME += " max_classes memory name out overwrite resume spill split top val"
OPTIONS = {name: f"--{name.replace('_', '-')}" for name in _SAME.split()} | {"version": "--model-version"}
_ARGUMENT = re.compile(rf"(?<![\w/?&])({'|'.join(OPTIONS)})=(?:True\b|'([^']*)'|(?=[A-Z0-9]))")


def as_options(message: str) -> str:
    """Translate a library's message for a command line: ``top=5, overwrite=True`` -> ``--top 5, --overwrite``."""

    def option(found: re.Match[str]) -> str:
        value = shlex.quote(found[2]) if found[2] else ""
        return OPTIONS[found[1]] + ("" if found[0].endswith("=True") else f" {value}")

    return _ARGUMENT.sub(option, message)


def counted(number: int, noun: str) -> str:
    """A number and its noun, singular or plural: "1 image", "2,000 images", "3 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def fail(message: str, status: int) -> int:
    """Print on stderr what went wrong; return the status."""
    print(f"resnext-hub: {as_options(message)}", file=_failures[-1] if _failures else sys.stderr)
    return status


_failures: list[TextIO] = []  # inside `quiet`: where failures are still printed


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Print nothing on stderr but failures: no licences, notes, progress or names of saved files."""
    _failures.append(sys.stderr)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nothing, contextlib.redirect_stderr(nothing):
            yield
    finally:
        _failures.pop()


def status_of(run: Callable[[], int | None], out: Path | None = None, *, resumable: bool = False) -> int:
    """Run a command and return its exit status; print on stderr why it failed, or after Ctrl-C how to resume.

    ``out`` is the file or folder that it writes, for errors of the file system that name no file.
    """
    try:
        status = run() or EXIT_OK
        sys.stdout.flush()  # here, so that a reader that has seen enough is noticed here
        return status
    except ResNeXtHubError as error:
        return fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        return EXIT_OK
    except OSError as error:  # no permission, no space
        where = error.filename or out
        return fail(f"{where}: {error.strerror or error}" if where else str(error), EXIT_USAGE)
    except ValueError as error:  # a value that a function refuses
        return fail(str(error), EXIT_USAGE)
    except StoppedError as stopped:
        return fail(str(stopped), stopped.exit_code)
    except KeyboardInterrupt:
        return fail(f"Stopped.{' To continue, run the same command with --resume.' * resumable}", EXIT_STOPPED)
