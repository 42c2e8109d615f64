"""Write the README's table of variants and the digest of weights_manifest.json; --check only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from resnext_hub.cli.list import file_size
from resnext_hub.models.manifest import Accuracy, Checkpoint, default_manifest, write_digest

ROOT = Path(__file__).resolve().parent.parent
MARKER = "<!-- variants -->"


def accuracy(found: Accuracy | None) -> str:
    return "–" if found is None else f"{found.top1:.2f} / {found.top5:.2f}"


def row(checkpoint: Checkpoint, aliases: list[str]) -> str:
    name = f"`{checkpoint.name}`" + "".join(f" (`{alias}`)" for alias in aliases)
    published = accuracy(checkpoint.published) + ("" if checkpoint.published.dataset == "imagenet" else "¹")
    measured = accuracy(checkpoint.measured_on(checkpoint.published.dataset))
    return (
        f"| {name} | {checkpoint.params / 1e6:.1f} M | {checkpoint.gmacs:.2f} | {file_size(checkpoint)} "
        f"| {published} | {measured} | {checkpoint.license_id or 'not stated'} |"
    )


def variants() -> str:
    manifest = default_manifest()
    shown = [found for c in manifest.checkpoints.values() if (found := c.measured_on(c.published.dataset))]
    authors = " and ".join(f"{name}'s authors" for name in sorted({found.source.split()[0] for found in shown}))
    accuracies = f"Top-1 / top-5 (published) | Top-1 / top-5 (measured by {authors})"
    lines = [
        f"| Variant | Parameters | GMACs | File | {accuracies} | Licence |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for checkpoint in manifest.checkpoints.values():
        aliases = [alias for alias, of in manifest.aliases.items() if of == checkpoint.entrypoint]
        lines.append(row(checkpoint, aliases))
    return "\n".join(lines)


def main() -> int:
    if "--check" not in sys.argv:
        write_digest(ROOT)
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    before, _, after = text.split(MARKER)
    current = f"{before}{MARKER}\n{variants()}\n{MARKER}{after}"
    if current == text:
        return 0
    if "--check" in sys.argv:
        print("README.md: the table of variants is not current; run maintenance/write_table.py", file=sys.stderr)
        return 1
    path.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
