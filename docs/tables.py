"""Write what is made from weights_manifest.json: the README's table, the manifest's digest; --check only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from resnext_hub.models.manifest import Checkpoint, default_manifest, write_digest

ROOT = Path(__file__).resolve().parent.parent
MARKER = "<!-- variants -->"


def row(checkpoint: Checkpoint, aliases: list[str]) -> str:
    name = f"`{checkpoint.name}`" + "".join(f" (`{alias}`)" for alias in aliases)
    published, measured = checkpoint.published, checkpoint.measured_on(checkpoint.published.dataset)
    other = f"{measured.top1:.2f} / {measured.top5:.2f}" if measured else "–"
    star = "" if published.dataset == "imagenet" else "¹"
    return (
        f"| {name} | {checkpoint.params / 1e6:.1f} M | {checkpoint.gmacs:.2f} "
        f"| {published.top1:.2f} / {published.top5:.2f}{star} | {other} | {checkpoint.license_id or 'not stated'} |"
    )


def variants() -> str:
    manifest = default_manifest()
    lines = [
        "| Variant | Parameters | GMACs | Top-1 / top-5, published | … measured by others | Licence |",
        "|---|--:|--:|--:|--:|---|",
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
        print("README.md: the table of variants is not what the manifest says; run docs/tables.py", file=sys.stderr)
        return 1
    path.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
