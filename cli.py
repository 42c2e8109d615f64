"""The command ``resnext-hub``: parses, calls, prints. Starts without torch; a subcommand imports what it needs."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .console import EXIT_IMAGE, EXIT_OK, EXIT_STOPPED, EXIT_USAGE, EXIT_WEIGHTS, as_options, counted, fail
from .data.options import add_reading_options
from .demo import command as demo
from .deploy import command as export
from .errors import ManifestError, MissingPackageError, UnknownVariantError
from .evaluation import command as evaluate
from .models.manifest import Manifest, default_manifest, find_checkpoint
from .packages import install, missing
from .training import command as train

if TYPE_CHECKING:
    from .processing_utils import Prediction

__all__ = ["main"]

DEFAULT_VARIANT = "resnext50_32x4d"
# Arguments of classify_many that only --out takes.
TABLE_OPTIONS = (
    *("batch", "workers", "features", "column", "label_column", "grade", "cluster", "gpus", "resume", "overwrite"),
    "anonymous",
)
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnext-hub",
        description="Classify images with ResNeXt networks; evaluate, fine-tune and export the networks.",
        epilog="Exit status: 0 success; 1 an image could not be used; 2 wrong arguments; 3 weights not available; 4 an "
        "export or accuracy differs from what was expected; 130 stopped.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    about = "list the variants with size, accuracy and licence"
    listing = commands.add_parser("list", help=about, description=f"{about.capitalize()}.")
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    listing.set_defaults(run=_list)

    about = "name what is in photos, or make a table of many images"
    classify = commands.add_parser("classify", help=about, description=f"{about.capitalize()}.")
    classify.add_argument("photos", nargs="+", metavar="PHOTO", help="path or URL; with --out also folders and more")
    variant = "a name from 'resnext-hub list', or a folder that 'train' wrote (default: %(default)s)"
    classify.add_argument("--variant", default=DEFAULT_VARIANT, metavar="VARIANT", help=variant)
    engines = "what runs the network: auto, torch, onnxruntime, openvino or compile (default: %(default)s)"
    classify.add_argument("--engine", default="auto", metavar="ENGINE", help=engines)
    classify.add_argument("--top", type=_positive_number, metavar="K", help="number of classes to show (default: 5)")
    classify.add_argument("--json", action="store_true", help="print one JSON object per photo, one per line")
    classify.add_argument("--picture", type=Path, metavar="FILE", help="save photo and predictions (one photo only)")
    _add_table_arguments(classify)
    classify.set_defaults(run=_classify)

    train.add_to(commands)
    evaluate.add_to(commands)
    export.add_to(commands)
    demo.add_to(commands)

    cache = commands.add_parser("cache", help="list, verify or remove downloaded weights")
    actions = cache.add_subparsers(dest="action", required=True, title="actions", metavar="ACTION")
    for name, run, text in (
        ("list", _cache_list, "list files, sizes, dates, sources, and what can be removed"),
        ("verify", _cache_verify, "check the hash of every file again"),
        ("prune", _cache_prune, "remove what is no longer needed"),
    ):
        actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.").set_defaults(run=run)
    return parser


def _add_table_arguments(classify: argparse.ArgumentParser) -> None:
    table = classify.add_argument_group(
        "many images to one table",
        "With --out, PHOTO may also be a folder, a pattern ('*.jpg', 'shards-{000..099}.tar'), a LIST.txt of paths or "
        "URLs, a TABLE.parquet, an archive of images (.tar, WebDataset), or any of these at s3://, gs://, https://.",
    )
    table.add_argument(
        "--out", type=Path, metavar="FILE", help="table to write (.parquet, .csv or .jsonl): one row per image"
    )
    # SUPPRESS: what is not passed is left to the default of classify_many, and shows without --out.
    options: list[tuple[str, dict[str, Any]]] = [
        ("--batch", {"type": _positive_number, "metavar": "N", "help": "images per batch (default: 16)"}),
        ("--workers", {"type": _positive_number, "metavar": "N", "help": "threads (default: all cores)"}),
        ("--features", {"action": "store_true", "help": "add a column of pooled features (float16)"}),
        (
            "--grade",
            {"choices": ("reference", "close", "fast"), "help": "how exactly images are resized (default: close)"},
        ),
        ("--cluster", {"choices": ("ray",), "help": "use all nodes of a cluster; --workers is then per actor"}),
        ("--gpus", {"type": float, "metavar": "N", "help": "GPUs per actor (default: 0)"}),
        ("--resume", {"action": "store_true", "help": "continue a run that was stopped"}),
        ("--overwrite", {"action": "store_true", "help": "replace FILE, or what a stopped run left of it"}),
    ]
    for name, settings in options:
        table.add_argument(name, default=argparse.SUPPRESS, **settings)
    add_reading_options(table, default=argparse.SUPPRESS)


def _positive_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
    return int(text)


def _list(arguments: argparse.Namespace, manifest: Manifest) -> int:
    checkpoints = manifest.checkpoints.values()
    if arguments.json:
        rows = [
            {
                "name": c.name,
                "entrypoint": c.entrypoint,
                "params": c.params,
                "gmacs": c.gmacs,
                "dataset": c.published.dataset,
                "top1": c.published.top1,
                "top5": c.published.top5,
                "measured": [dataclasses.asdict(row) for row in c.measured],
                "license": c.license_id,
                "known_issues": list(c.known_issues),
            }
            for c in checkpoints
        ]
        print(json.dumps(rows, indent=1))
        return EXIT_OK
    print(f"{'name':31}{'params':>8}{'GMACs':>8}{'top-1':>8}{'measured':>10}  licence")
    for c in checkpoints:
        measured = c.measured_on(c.published.dataset)
        print(
            f"{c.name:31}{c.params / 1e6:7.1f}M{c.gmacs:8.2f}{c.published.top1:7.2f}"
            f"{' ' if c.published.dataset == 'imagenet' else '*'}"
            f"{f'{measured.top1:.2f}' if measured else '-':>10}  {c.license_id or 'not stated'}"
        )
    print(
        "\nTop-1 accuracy in %, as published and as measured by third parties, on ImageNet\n"
        "(* on Tiny ImageNet: 200 classes, 64x64). --json adds top-5 and known issues."
    )
    return EXIT_OK


def _classify(arguments: argparse.Namespace, manifest: Manifest) -> int:
    options = {name: value for name, value in vars(arguments).items() if name in TABLE_OPTIONS}
    if arguments.out is None and options:
        return fail(f"--{next(iter(options))} is an option for tables: pass --out FILE too.", EXIT_USAGE)
    if wrong := _wrong_picture(arguments.picture, arguments.photos):
        return fail(wrong, EXIT_USAGE)
    from .data.source import is_collection

    if arguments.out is None and (many := next((p for p in arguments.photos if is_collection(p)), None)):
        return fail(f"{many} may have many images: pass --out FILE.csv to make a table of them.", EXIT_USAGE)
    try:
        checkpoint = find_checkpoint(arguments.variant)
    except (UnknownVariantError, ManifestError) as error:
        return fail(str(error), EXIT_USAGE)
    if arguments.top is None:
        arguments.top = min(5, checkpoint.num_classes)
    if arguments.top > checkpoint.num_classes:
        return fail(f"--top must be from 1 to {checkpoint.num_classes} for {checkpoint.name}.", EXIT_USAGE)

    from .errors import EngineError
    from .inference.engines import ENGINES

    if arguments.engine not in ENGINES:
        return fail(f"Unknown engine {arguments.engine!r}; choose from {', '.join(ENGINES)}.", EXIT_USAGE)
    if arguments.out is not None:
        return _classify_many(arguments, checkpoint.variant, options)
    from .errors import CheckpointError, ImageError
    from .inference.classifier import classifier
    from .processing_utils import open_image, plot_predictions
    from .processing_utils.images import with_name

    def failed(photo: str, error: Exception) -> int:
        if arguments.json:
            found = {"image": photo, "error": as_options(str(error))}
            print(json.dumps(found, ensure_ascii=False), flush=True)
        return fail(with_name(photo, error), EXIT_IMAGE)

    status, classify = EXIT_OK, None
    for photo in arguments.photos:
        try:
            image = open_image(photo, allow_private=getattr(arguments, "allow_private", False))
        except (ImageError, OSError) as error:
            status = failed(photo, error)
            continue
        try:  # only now: a wrong path need not wait for weights
            classify = classify or classifier(checkpoint.variant, engine=arguments.engine, build=False)
        except EngineError as error:
            return fail(str(error), EXIT_USAGE)
        except CheckpointError as error:
            return fail(str(error), EXIT_WEIGHTS)
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
    if arguments.json or arguments.picture:
        return fail("--json and --picture cannot be used with --out; --out FILE.jsonl writes JSON lines.", EXIT_USAGE)
    cluster = options.pop("cluster", None)
    if cluster is None and "gpus" in options:
        return fail("--gpus is an option for clusters: pass --cluster ray too.", EXIT_USAGE)
    from .errors import CheckpointError, EngineError, OutputError, SourceError
    from .inference.bulk import classify_many
    from .inference.cluster import classify_on_ray

    options |= {
        "engine": arguments.engine,
        "top": arguments.top,
        "allow_private": getattr(arguments, "allow_private", False),
        "progress": sys.stderr.isatty(),
    }
    if cluster and "workers" in options:
        options["cores"] = options.pop("workers")
    try:
        done = (classify_on_ray if cluster else classify_many)(arguments.photos, arguments.out, variant, **options)
    except (SourceError, OutputError, EngineError) as error:
        return fail(str(error), EXIT_USAGE)
    except CheckpointError as error:
        return fail(str(error), EXIT_WEIGHTS)
    except OSError as error:  # the file system: no right to read or write
        return fail(f"{error.filename or arguments.out}: {error.strerror or error}", EXIT_USAGE)
    except KeyboardInterrupt:
        return fail("Stopped. To continue, run the same command with --resume.", EXIT_STOPPED)
    print(f"Saved {done.out}: {counted(done.images, 'image')}", file=sys.stderr)
    if done.passed:
        print(done.passed, file=sys.stderr)
    if done.errors:
        return fail(f"{counted(done.errors, 'image')} could not be used: see the column 'error'.", EXIT_IMAGE)
    return EXIT_OK


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


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _cache_list(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from .models.cache import checkpoints_folder, inventory

    items = inventory(manifest)
    print(checkpoints_folder())
    for item in items:
        print(f"{_size(item.bytes):>13}  {item.path.name}")
        if item.removable:
            print(f"{'':15}can be removed: {item.removable}")
        elif item.kept:
            print(f"{'':15}kept: {item.kept}")
        elif item.engine:
            print(
                f"{'':15}{item.engine} engine of {item.checkpoint.name if item.checkpoint else 'an unknown checkpoint'}"
            )
        elif item.source is None:
            print(f"{'':15}{f'mapped copy of {item.checkpoint.name}' if item.checkpoint else 'download in progress'}")
        elif item.record is None:
            print(f"{'':15}{item.checkpoint.name if item.checkpoint else ''}, not verified yet")
        else:
            known = "verified" if item.source.hash else "unverified: no hash is published"
            print(f"{'':15}{item.checkpoint.name if item.checkpoint else ''}, {known}, {item.record.date[:10]}")
            print(f"{'':15}sha256 {item.record.sha256[:16]}…  {item.record.source}")
    removable = sum(item.bytes for item in items if item.removable)
    print(
        f"{_size(sum(item.bytes for item in items)):>13}  in total; {_size(removable)} can be removed (resnext-hub "
        "cache prune)"
    )
    return EXIT_OK


def _cache_verify(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from .errors import CheckpointError
    from .models.cache import inventory, is_whole, verify
    from .models.checkpoints import examine, is_faithful

    status, broken = EXIT_OK, set()
    items = inventory(manifest)  # originals come before their copies
    vouched = {item.path for item in items if item.source is not None and item.source.hash is not None}
    for item in items:
        if item.source is not None:
            try:
                print(f"{item.path.name}: sha256 {verify(item.path, item.source, again=True)}", flush=True)
                examine(item.path, vouched=item.path in vouched)
            except CheckpointError as error:
                broken.add(item.path)
                status = fail(str(error), EXIT_WEIGHTS)
        elif item.engine and not item.removable:
            if is_whole(item.path):
                print(f"{item.path.name}: unchanged since it was built")
            else:
                shutil.rmtree(item.path, ignore_errors=True)
                status = fail(
                    f"{item.path.name} was corrupt and has been removed. It is built again when needed.", EXIT_WEIGHTS
                )
        elif item.copy_of is not None and not item.removable and item.copy_of not in broken:
            if is_faithful(item.path, item.copy_of, vouched=item.copy_of in vouched):
                print(f"{item.path.name}: identical to its original", flush=True)
            else:
                item.path.unlink(missing_ok=True)
                status = fail(
                    f"{item.path.name} differed from its original and has been removed. It is made again when needed.",
                    EXIT_WEIGHTS,
                )
    return status


def _cache_prune(arguments: argparse.Namespace, manifest: Manifest) -> int:
    from .models.cache import inventory

    for item in inventory(manifest):
        if item.removable:
            if item.path.is_dir():
                shutil.rmtree(item.path, ignore_errors=True)
            else:
                item.path.unlink(missing_ok=True)
            print(f"Removed {item.path.name} ({_size(item.bytes)}): {item.removable}")
        elif item.kept:
            print(f"Kept {item.path.name} ({_size(item.bytes)}): {item.kept}")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:  # help, but no success: as click and clap (ruff, uv) do
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends no run
    try:
        return arguments.run(arguments, default_manifest())
    except MissingPackageError as error:
        return fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_STOPPED
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()
        return EXIT_OK
