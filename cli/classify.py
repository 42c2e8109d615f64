"""``resnext-hub classify``: photos one by one, or many images to one table."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EXIT_IMAGE, EXIT_OK, EXIT_USAGE, ImageError, SourceError
from ..models.manifest import Manifest, find_checkpoint
from ..packages import install, missing
from .console import as_options, counted, fail
from .options import add_engine, add_grade, add_limits, add_precision, add_reading_options, add_variant, positive

if TYPE_CHECKING:
    from ..processing_utils import Prediction

DEFAULT_VARIANT = "resnext50_32x4d"
# Arguments of classify_many that only --out takes.
TABLE_OPTIONS = (
    *("batch", "workers", "features", "column", "label_column", "grade", "cluster", "gpus", "resume", "overwrite"),
    *("anonymous", "redo_errors"),
)
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


def add_to(commands: Any) -> None:
    about = "name what is in photos, or make a table of many images"
    classify = commands.add_parser("classify", help=about, description=f"{about.capitalize()}.")
    photos = "path or URL, or - for an image from stdin; with --out also folders and more"
    classify.add_argument("photos", nargs="+", metavar="PHOTO", help=photos)
    add_variant(classify, note=" (default: %(default)s)", default=DEFAULT_VARIANT)
    add_engine(classify)
    add_precision(classify, "; by default, --out takes images of PHOTO")
    classify.add_argument("--top", type=positive, metavar="K", help="number of classes to show (default: 5)")
    classify.add_argument("--json", action="store_true", help="print one JSON object per photo, one per line")
    add_limits(classify)
    picture = "save photo and predictions (one photo only); its folder is made if it is missing"
    classify.add_argument("--picture", type=Path, metavar="FILE", help=picture)
    table = classify.add_argument_group(
        "many images to one table",
        "With --out, PHOTO may also be a folder, a pattern ('*.jpg', 'shards-{000..099}.tar'), a LIST.txt of paths or "
        "URLs, a TABLE.parquet, an archive of images (.tar, WebDataset), or any of these at s3://, gs://, https://. "
        "- reads a list of paths or URLs from stdin.",
        # Only options that were passed are there: classify_many has the defaults, and without --out they are an error.
        argument_default=argparse.SUPPRESS,
    )
    out = (
        "table to write (.parquet, .csv or .jsonl), one row per image; its folder is made if it is missing. - writes "
        "CSV to stdout, or with --json JSON lines"
    )
    table.add_argument("--out", type=Path, default=None, metavar="FILE", help=out)
    table.add_argument("--batch", type=positive, metavar="N", help="images per batch (default: 16)")
    table.add_argument("--workers", type=positive, metavar="N", help="threads (default: all cores)")
    table.add_argument("--features", action="store_true", help="add a column of pooled features (float16)")
    add_grade(table, "close")
    table.add_argument("--cluster", choices=("ray",), help="use all nodes of a cluster; --workers is then per actor")
    table.add_argument("--gpus", type=float, metavar="N", help="GPUs per actor (default: 0)")
    table.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    table.add_argument("--overwrite", action="store_true", help="replace FILE, or what a stopped run left of it")
    redo = "classify again only the images that have an error in FILE.parquet, or that are not in it"
    table.add_argument("--redo-errors", action="store_true", help=redo)
    add_reading_options(table)
    classify.set_defaults(run=_classify)


def _classify(arguments: argparse.Namespace, manifest: Manifest) -> int:
    options = {name: value for name, value in vars(arguments).items() if name in TABLE_OPTIONS}
    if arguments.out is None and options:
        option = next(iter(options)).replace("_", "-")
        return fail(f"--{option} is an option for tables: pass --out FILE too.", EXIT_USAGE)
    if wrong := _wrong_picture(arguments.picture, arguments.photos):
        return fail(wrong, EXIT_USAGE)
    from ..data.source import is_collection

    if arguments.out is None and (many := next((p for p in arguments.photos if is_collection(p)), None)):
        return fail(f"{many} may have many images: pass --out FILE.csv to make a table of them.", EXIT_USAGE)
    checkpoint = find_checkpoint(arguments.variant)
    if arguments.top is not None and arguments.top > checkpoint.num_classes:
        return fail(f"--top must be from 1 to {checkpoint.num_classes} for {checkpoint.name}.", EXIT_USAGE)

    if arguments.out is not None:
        return _classify_many(arguments, checkpoint.variant, options)
    from ..inference.classifier import classifier
    from ..inference.engines import check_engine
    from ..processing_utils import open_image, plot_predictions
    from ..processing_utils.images import with_name

    def failed(photo: str, error: Exception) -> int:
        if arguments.json:
            print(json.dumps({"image": photo, "error": as_options(str(error))}, ensure_ascii=False), flush=True)
        return fail(with_name(photo, error), EXIT_IMAGE)

    check_engine(arguments.engine, arguments.precision, arguments.calibration is not None)
    how = {name: getattr(arguments, name) for name in ("engine", "precision", "calibration")}
    reading = {"allow_private": getattr(arguments, "allow_private", False), "max_pixels": arguments.max_pixels}
    status, classify = EXIT_OK, None
    for photo in arguments.photos:
        try:
            content = sys.stdin.buffer.read() if photo == "-" else photo
            image = open_image(content, truncated=arguments.truncated, **reading)
        except (ImageError, OSError) as error:
            status = failed(photo, error)
            if photo == "-":
                print("To classify a list of paths or URLs from stdin, pass --out - too.", file=sys.stderr)
            continue
        # Only now, so that a wrong path is reported without a download.
        classify = classify or classifier(
            checkpoint.variant, device=arguments.device, build=False, progress=sys.stderr.isatty(), **how
        )
        try:
            predictions = classify(image, arguments.top)
        except ImageError as error:
            status = failed(photo, error)
            continue
        if arguments.json:
            found = [dataclasses.asdict(p) for p in predictions]
            print(json.dumps({"image": photo, "predictions": found}, ensure_ascii=False), flush=True)
        else:
            _print_predictions(photo, predictions)
        if arguments.picture is not None:
            try:
                arguments.picture.parent.mkdir(parents=True, exist_ok=True)
                title = f"{checkpoint.name}, {checkpoint.num_classes} classes"
                plot_predictions(image, predictions, title=title).savefig(arguments.picture, dpi=150)
            except OSError as error:
                return fail(f"Cannot write the picture {arguments.picture}: {error.strerror or error}.", EXIT_USAGE)
            print(f"Saved {arguments.picture}", file=sys.stderr)
    return status


def _classify_many(arguments: argparse.Namespace, variant: str, options: dict[str, Any]) -> int:
    to_stdout = str(arguments.out) == "-"
    if arguments.picture:
        return fail("--picture cannot be used with --out.", EXIT_USAGE)
    if arguments.json and not to_stdout:
        return fail("--json cannot be used with --out FILE: --out FILE.jsonl writes JSON lines.", EXIT_USAGE)
    special = "--out -" if to_stdout else "--redo-errors" if "redo_errors" in options else None
    others = [name for name in ("cluster", "gpus", "resume", "overwrite", "redo_errors") if name in options]
    if special and (others := [name for name in others if special != f"--{name.replace('_', '-')}"]):
        return fail(f"--{others[0].replace('_', '-')} cannot be used with {special}.", EXIT_USAGE)
    cluster = options.pop("cluster", None)
    if cluster is None and "gpus" in options:
        return fail("--gpus is an option for clusters: pass --cluster ray too.", EXIT_USAGE)
    from ..inference.bulk import classify_many, stream_predictions
    from ..inference.cluster import classify_on_ray

    same = ("engine", "device", "precision", "calibration", "top", "max_pixels", "truncated")
    options |= {name: getattr(arguments, name) for name in same}
    options |= {"allow_private": getattr(arguments, "allow_private", False), "progress": sys.stderr.isatty()}
    if cluster and "workers" in options:
        options["cores"] = options.pop("workers")
    with _source(arguments.photos, arguments.out) as source:
        if to_stdout:
            done = stream_predictions(source, sys.stdout, ".jsonl" if arguments.json else ".csv", variant, **options)
        else:
            done = (classify_on_ray if cluster else classify_many)(source, arguments.out, variant, **options)
    if not to_stdout:
        again = f", {done.computed:,} of them classified now" if special else ""
        print(f"Saved {done.out}: {counted(done.images, 'image')}{again}", file=sys.stderr)
    if done.passed:
        print(done.passed, file=sys.stderr)
    if done.errors:
        return fail(f"{counted(done.errors, 'image')} could not be used: see the column 'error'.", EXIT_IMAGE)
    return EXIT_OK


@contextlib.contextmanager
def _source(photos: list[str], out: Path) -> Iterator[list[str]]:
    """Replace "-" by a file with the list from stdin: beside ``out``, so that a resumed run has the same source."""
    if "-" not in photos:
        yield photos
        return
    content = sys.stdin.buffer.read()
    if b"\0" in content:
        raise SourceError("stdin is not a list of paths or URLs. To classify one image from stdin, leave out --out.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stdin.txt" if str(out) == "-" else out.with_name(f"{out.name}.stdin.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        try:
            yield [str(file) if photo == "-" else photo for photo in photos]
        finally:
            file.unlink()


def _wrong_picture(picture: Path | None, photos: list[str]) -> str | None:
    """Return why --picture cannot be written, before anything is loaded or computed for it."""
    if picture is None:
        return None
    if missing(["matplotlib"]):
        return f"--picture needs matplotlib: {install('pictures')}"
    if len(photos) > 1:
        return f"--picture takes one photo, got {len(photos)}."
    if picture.suffix.lower() not in PICTURES:
        return f"--picture {picture}: the name must end in one of {', '.join(PICTURES)}."
    if picture.exists() and Path(photos[0]).exists() and picture.samefile(photos[0]):
        return f"--picture {picture} would replace the photo itself: choose another name."
    return None


def _print_predictions(photo: str, predictions: Sequence[Prediction]) -> None:
    print(photo)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for p in predictions:
        line = f"  {100 * p.probability:5.1f}%  {p.label}"
        print(line if width is None or len(line) <= width else f"{line[: width - 1]}…", flush=True)
