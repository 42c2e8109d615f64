"""Download every file that weights_manifest.json names, verify its length and hash, and report (make verify-weights).

For maintainers with a network. One file at a time is on the disk; it is deleted after it has been hashed, unless
``--keep`` is passed. A run that was stopped resumes: files that were verified are not downloaded again (unless
``--again`` is passed), and a download that was cut off is continued. ``--write`` writes complete hashes and lengths to
the manifest where it has a prefix or nothing. Exit status: 0 all verified, 1 something was not.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from resnext_hub.errors import CheckpointError
from resnext_hub.files import write_atomically
from resnext_hub.models.download import fetch
from resnext_hub.models.manifest import MANIFEST, ROOT, Checkpoint, Manifest, Source, load_manifest, write_digest
from resnext_hub.models.store import Store
from resnext_hub.net.client import GetError

VERIFIED = "verified"
FIRST_SEEN = "first seen"  # the publisher states no hash, so this is the hash at that date
WRONG = "not the published file"
NOT_FETCHED = "not fetched"


@dataclass(frozen=True)
class Result:
    """The result of checking one source. ``message``: why the download failed."""

    checkpoint: str
    place: str
    state: str
    bytes: int | None = None
    sha256: str | None = None
    message: str = ""
    date: str = ""

    def settles(self, source: Source) -> bool:
        """True if a source was fetched before and the manifest expects what was found: it need not be fetched again."""
        if self.state not in (VERIFIED, FIRST_SEEN) or self.sha256 is None:
            return False
        return source.bytes in (None, self.bytes) and (source.hash is None or self.sha256.startswith(source.hash.value))


def check(checkpoint: Checkpoint, source: Source, store: Store, keep: bool, progress: bool) -> Result:
    """Download one source as users' machines do, and verify it."""
    path = store.path_of(checkpoint, source)
    place = source.url or str(source.path)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    try:
        if source.url is not None and not path.is_file():
            fetch(source, path, store, progress)
        digest = store.verify(path, source, again=True)
        state = VERIFIED if source.hash else FIRST_SEEN
        return Result(checkpoint.name, place, state, path.stat().st_size, digest, date=date)
    except CheckpointError as error:
        return Result(checkpoint.name, place, WRONG, message=str(error), date=date)
    except (GetError, OSError) as error:
        return Result(checkpoint.name, place, NOT_FETCHED, message=str(error), date=date)
    finally:
        if source.url is not None and not keep:
            path.unlink(missing_ok=True)
            store.own_file(path, ".json").unlink(missing_ok=True)


def read_results(path: Path) -> dict[str, Result]:
    if not path.is_file():
        return {}
    return {row["place"]: Result(**row) for row in json.loads(path.read_text(encoding="utf-8"))}


def write_results(path: Path, results: list[Result]) -> None:
    rows = [dataclasses.asdict(result) for result in results]
    write_atomically(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def check_all(manifest: Manifest, folder: Path, *, keep: bool, again: bool, progress: bool) -> list[Result]:
    """One result for each source, kept in ``folder``/results.json as they come."""
    os.environ.pop("RESNEXT_HUB_MIRROR", None)
    store = Store(folder / "torch_home" / "hub" / "checkpoints")
    store.folder.mkdir(parents=True, exist_ok=True)
    known = read_results(folder / "results.json")
    results: list[Result] = []
    for checkpoint in manifest.checkpoints.values():
        for source in checkpoint.sources:
            result = known.get(source.url or str(source.path))
            if result is None or again or not result.settles(source):
                result = check(checkpoint, source, store, keep, progress)
            elif result.state == FIRST_SEEN and source.hash is not None:
                result = dataclasses.replace(result, state=VERIFIED)
            results.append(result)
            untouched = [row for place, row in known.items() if place not in {r.place for r in results}]
            write_results(folder / "results.json", results + untouched)
    return results


def report(results: list[Result]) -> str:
    lines = [
        "# Published weights, fetched and checked",
        "",
        f"{sum(r.state == VERIFIED for r in results)} of {len(results)} sources verified.",
        "",
        "| Checkpoint | Source | Result | Bytes | sha256 | Date |",
        "|---|---|---|--:|---|---|",
    ]
    for row in results:
        size = "" if row.bytes is None else f"{row.bytes:,}"
        result = f"**{row.state}**: {row.message}".replace("|", "\\|") if row.message else row.state
        lines.append(f"| `{row.checkpoint}` | {row.place} | {result} | {size} | `{row.sha256 or ''}` | {row.date} |")
    return "\n".join(lines) + "\n"


def filled_in(text: str, results: list[Result]) -> str:
    """The manifest's text with complete hashes and lengths filled in, and nothing else changed."""
    expected = json.loads(text)
    for result in results:
        if result.sha256 is None:
            continue
        for source in (s for c in expected["checkpoints"].values() for s in c["sources"] if s["url"] == result.place):
            source |= {"bytes": result.bytes, "hash": {"kind": "sha256", "value": result.sha256}}
            text = re.sub(
                rf'("url": {re.escape(json.dumps(result.place))},[^{{}}]*?"bytes": )(?:null|\d+)'
                r'(,\s*"hash": )(?:null|\{[^}]*\})',
                rf'\g<1>{result.bytes}\g<2>{{"kind": "sha256", "value": "{result.sha256}"}}',
                text,
            )
    if json.loads(text) != expected:
        raise SystemExit("The manifest has another form than this script expects: nothing was changed.")
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--checkout", type=Path, default=ROOT, help="checkout with the manifest to verify (default: this one)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "build" / "verify-weights",
        help="folder for the files and the report (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="keep the files (12 GB)")
    parser.add_argument("--again", action="store_true", help="also download files that were verified before")
    parser.add_argument("--write", action="store_true", help="write complete hashes and lengths to the manifest")
    arguments = parser.parse_args(argv)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = arguments.checkout / MANIFEST
    manifest = load_manifest(path, arguments.checkout.resolve())
    results = check_all(manifest, folder, keep=arguments.keep, again=arguments.again, progress=sys.stderr.isatty())
    (folder / "report.md").write_text(report(results), encoding="utf-8")
    for result in results:
        print(f"{result.state:24}{result.checkpoint:32}{result.message or result.sha256}")
    print(f"Saved {folder / 'report.md'}")
    if arguments.write:
        before = path.read_text(encoding="utf-8")
        after = filled_in(before, results)
        if after != before:
            write_atomically(path, after)
            write_digest(arguments.checkout)
    return 0 if all(result.state == VERIFIED for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
