"""File and folder names with a meaning: suffixes, hidden files, split folders. `docs/data.md` lists them for users."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

Kind = Literal["image", "list", "table", "archive"]

# All suffixes of the formats in `images.FORMATS`.
IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"),
)
# Photos that cannot be read here. They count as images: each gives a row with an error.
UNREADABLE = (".heic", ".heif", ".hif", ".jp2", ".j2k", ".jxl")
# Pillow would open some of these as TIFF, and return their thumbnail.
RAW = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq")
KINDS: dict[Kind, tuple[str, ...]] = {
    "image": (*IMAGES, *UNREADABLE, *RAW),
    "list": (".txt", ".lst", ".csv", ".tsv", ".jsonl"),
    "table": (".parquet",),
    "archive": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip"),
}

HIDDEN = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")

#: The meaning of a folder's name, and of the first word in the name of a table or an archive.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def kind_of(name: str) -> Kind | None:
    """The kind of file that a name's suffix states."""
    return next((kind for kind, suffixes in KINDS.items() if name.lower().endswith(suffixes)), None)


def is_hidden(name: str) -> bool:
    """True if a file or folder below the root is left out because of its name."""
    return name.startswith(".") or name.lower() in HIDDEN


def split_of(word: str) -> str | None:
    """train, val or test, if a word means one of them."""
    return SPLITS.get(word.lower())


class Passed(Counter[str]):
    """The number of files that were left out, by suffix or by reason."""

    def file(self, name: str) -> None:
        """Count a file by its suffix."""
        found = re.search(r"\.\w{1,8}$", name)
        self[found[0].lower() if found else "without a suffix"] += 1

    def __str__(self) -> str:
        """As "3 files passed over: 2 .mov, 1 .txt"; empty if nothing was left out."""
        if not (total := sum(self.values())):
            return ""
        found = sorted(self.items(), key=lambda item: (-item[1], item[0]))
        what = ", ".join(f"{count:,} {name}" for name, count in found)
        return f"{total:,} file{'s' * (total > 1)} passed over: {what}"
