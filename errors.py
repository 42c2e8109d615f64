"""The exceptions that users of this package meet, and the exit status of the command line for each.

All inherit from `ResNeXtHubError`, so that one ``except`` catches them, and from the built-in exception that fits. A
wrong argument of a function raises a plain ValueError or TypeError. Imports nothing else of this package.
"""

from __future__ import annotations

from pathlib import Path

# Exit statuses of the command line; README has the table.
EXIT_OK, EXIT_IMAGE, EXIT_USAGE, EXIT_WEIGHTS, EXIT_DIFFERENT, EXIT_DIVERGED, EXIT_STOPPED = 0, 1, 2, 3, 4, 5, 130


class ResNeXtHubError(Exception):
    """Base class of this package's exceptions. The message says what was wrong and what to do."""

    exit_code = EXIT_USAGE


class MissingPackageError(ResNeXtHubError, ModuleNotFoundError):
    """A package that a feature needs is not installed. The message says how to install it."""


class ManifestError(ResNeXtHubError, ValueError):
    """The manifest of weights, or a trained folder's, is malformed."""


class UnknownVariantError(ResNeXtHubError, ValueError):
    """No checkpoint and no entrypoint has that name. The message suggests similar names."""


class CheckpointError(ResNeXtHubError, RuntimeError):
    """A checkpoint cannot be used. The message says why and what to do."""

    exit_code = EXIT_WEIGHTS


class UnwritableError(CheckpointError):
    """The folder of downloaded weights cannot be written."""

    @classmethod
    def of(cls, folder: Path, error: OSError) -> UnwritableError:
        return cls(f"Cannot write to {folder} ({error.strerror}): set TORCH_HOME to a folder that you can write to.")


class UnreachableError(CheckpointError):
    """No source of a checkpoint could be downloaded."""


class ImageError(ResNeXtHubError, ValueError):
    """An image cannot be used. The message says why."""

    exit_code = EXIT_IMAGE


class TruncatedImageError(ImageError):
    """A JPEG is cut off. Its beginning can be read: see ``truncated`` of `open_image`."""


class FetchError(ResNeXtHubError, OSError):
    """A URI was refused or could not be downloaded. The message says why."""

    exit_code = EXIT_IMAGE


class PrivateAddressError(FetchError):
    """A URI was refused because the address of its host is not public.

    The message names the address: a server should not repeat it to a stranger.
    """


class SourceError(ResNeXtHubError, ValueError):
    """A source of images has no images, or cannot be read. The message says why."""


class OutputError(ResNeXtHubError, RuntimeError):
    """A table or folder cannot be written, or must not be replaced. The message says what to do."""


class EngineError(ResNeXtHubError, RuntimeError):
    """An engine is not available here. The message says what is missing."""


class RecipeError(ResNeXtHubError, ValueError):
    """A recipe cannot be used. The message names the key."""


class UnknownOptionError(ResNeXtHubError, TypeError):
    """A function or a target of an export has no option of that name."""


class DivergedError(ResNeXtHubError, FloatingPointError):
    """The loss of a training run is not finite."""

    exit_code = EXIT_DIVERGED


class StoppedError(KeyboardInterrupt):
    """A training run was stopped by SIGINT (Ctrl-C) or SIGTERM, after writing a checkpoint.

    As a KeyboardInterrupt alone, it passes every ``except Exception``. The exit status is 128 + the signal's number.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class ExportError(ResNeXtHubError, RuntimeError):
    """An export is not possible here. The message says why and what to do."""


class InexactError(ExportError):
    """The outputs of an exported network differ too much from the network's. Nothing was written."""

    exit_code = EXIT_DIFFERENT
