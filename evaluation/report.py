"""Write a report as text, JSON, tables and pictures."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import remove_temporary, write_atomically
from ..processing_utils.labels import read_labels
from .evaluate import Report, Result
from .metrics import Rate

CONFUSIONS = 100  # pairs per contender in the table
MOST_CLASSES = 50  # in a picture of confusions
# In a file of their own, so that the report of a resumed run equals that of an uninterrupted one.
SPEED = ("computed", "seconds", "engine_seconds")


def speed_as_json(report: Report) -> dict[str, Any]:
    """The images that the last run computed, and the seconds."""
    speed = report.computed / report.seconds if report.computed and report.seconds else None
    return {name: getattr(report, name) for name in SPEED} | {"images_per_second": speed}


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON data, without classes and confusions, which are in the tables."""

    def of(result: Result) -> dict[str, Any]:
        preset = {k: v for k, v in dataclasses.asdict(result.preset).items() if k != "source"}
        values = dataclasses.asdict(result.metrics)
        del values["classes"], values["confusions"]
        verdicts = [dataclasses.asdict(c) | {"reproduced": c.reproduced} for c in result.comparisons]
        about = {name: getattr(result, name) for name in ("name", "variant", "dataset", "views", "engine", "precision")}
        return about | {"preprocessing": preset} | values | {"comparisons": verdicts}

    values = {f.name: getattr(report, f.name) for f in dataclasses.fields(report) if f.name not in SPEED}
    return values | {"results": [of(result) for result in report.results]}


def _rate(rate: Rate) -> str:
    return f"{rate.percent:.2f} [{rate.low:.2f}, {rate.high:.2f}]" if rate.total else "-"


def _rows(report: Report) -> list[tuple[str, ...]]:
    several = len({result.dataset for result in report.results}) > 1
    rows = []
    for result in report.results:
        name, metrics = f"{result.name} ({result.dataset})" if several else result.name, result.metrics
        ece = f"{100 * metrics.ece:.1f}" if metrics.top1.total else "-"
        verdicts = [f"{c.top1:.2f} / {c.top5:.2f} {c.kind}: {c.verdict}" for c in result.comparisons]
        compared = "; ".join(verdicts) or "no published figure for these images"
        mean_ap = "-" if metrics.mean_ap is None else f"{metrics.mean_ap:.2f}"
        rows.append((name, mean_ap, _rate(metrics.top1), _rate(metrics.top5), ece, compared))
    rows.insert(0, ("", "mAP %", "top-1 %", "top-5 %", "ECE %", "compared with"))
    return rows if any(row[1] != "-" for row in rows[1:]) else [(row[0], *row[2:]) for row in rows]


def _facts(report: Report) -> list[str]:
    how = [f"grade {report.grade}", " and ".join(sorted({result.precision for result in report.results}))]
    how += ["predictions restricted to these classes"] if report.restricted else []
    images = f"{report.images:,} images in {report.classes} classes ({report.layout})"
    lines = [", ".join([f"{report.title}: {images}", *how])]
    if report.unreadable:
        name, why = report.unreadable[0]
        lines.append(f"Unreadable, and not counted: {len(report.unreadable):,} of them, e.g. {name}: {why}")
    return [*lines, *report.notes]


def as_text(report: Report) -> str:
    """The text that the command prints, for 80 columns."""
    rows = [row[:-1] for row in _rows(report)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    table += [textwrap.fill(f"{row[0]}: {row[-1]}", 80, subsequent_indent="  ") for row in _rows(report)[1:]]
    facts = _facts(report)
    if report.computed and report.seconds:
        speed = report.computed / report.seconds
        facts.append(f"{report.computed:,} images in {report.seconds:.1f} s: {speed:.1f} images/s")
    return "\n".join([*facts, "", *(line.rstrip() for line in table)])


def _as_markdown(report: Report) -> str:
    heads, *rows = _rows(report)
    table = [f"| {' | '.join(row)} |" for row in (heads, ("---", *["--:"] * (len(heads) - 2), "---"), *rows)]
    sources = {c.source for result in report.results for c in result.comparisons}
    lines = ["# Evaluation", "", *_facts(report), "", *table, "", "Intervals: 95 % (Wilson)."]
    return "\n".join([*lines, *(f"- {source}" for source in sorted(sources)), ""])


CLASSES = [
    "contender", "dataset", "class", "synset", "label", "images", "top1", "top5", "precision", "f1", "taken_for",
    "taken_for_label", "ap",
]  # fmt: skip
CONFUSED = [
    "contender", "dataset", "images", "class", "synset", "label", "taken_for", "taken_for_synset", "taken_for_label",
]  # fmt: skip


def _class_rows(report: Report) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [CLASSES]
    for result in report.results:
        labels = read_labels(result.labels)
        for c in result.metrics.classes:
            label, other = labels[c.index], None if c.taken_for is None else labels[c.taken_for].name
            start = (result.name, result.dataset, c.index, label.synset, label.name)
            shares = [f"{share:.2f}" for share in (c.top1, c.top5, c.precision, c.f1)]
            ap = None if c.ap is None else f"{c.ap:.2f}"
            rows.append((*start, c.images, *shares, c.taken_for, other, ap))
    return rows


def _confusion_rows(report: Report) -> list[Sequence[Any]]:
    rows: list[Sequence[Any]] = [CONFUSED]
    for result in report.results:
        labels = read_labels(result.labels)
        for c in result.metrics.confusions[:CONFUSIONS]:
            ends = [(i, labels[i].synset, labels[i].name) if i >= 0 else ("", "", "") for i in (c.truth, c.prediction)]
            rows.append((result.name, result.dataset, c.images, *ends[0], *ends[1]))
    return rows


def _csv(rows: list[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, default=str) + "\n"


def write_report(report: Report, folder: str | Path) -> list[Path]:
    """Write report.json, report.md, speed.json, classes.csv, confusions.csv and reliability.png; for several sizes also
    sizes.png, and for few classes confusion.png of the first contender.

    The same predictions give the same bytes, except in speed.json. Raises OutputError if it cannot be written.
    """
    from .plots import plot_confusion, plot_reliability, plot_sizes  # matplotlib, which a report as text does not need

    folder = Path(folder)
    contents: dict[str, str | Callable[[Path], object]] = {
        "report.json": _json(as_json(report)),
        "speed.json": _json(speed_as_json(report)),
        "report.md": _as_markdown(report),
        "classes.csv": _csv(_class_rows(report)),
        "confusions.csv": _csv(_confusion_rows(report)),
        "reliability.png": lambda p: plot_reliability(report.results).savefig(p, dpi=120, format="png"),
    }
    if len({(r.preset.crop_size, r.preset.resize_size) for r in report.results}) > 1:
        contents["sizes.png"] = lambda p: plot_sizes(report.results).savefig(p, dpi=120, format="png")
    first = report.results[0].metrics
    if 1 < len(first.classes) <= MOST_CLASSES and first.mean_ap is None:
        contents["confusion.png"] = lambda p: plot_confusion(report.results[0]).savefig(p, dpi=120, format="png")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_temporary(folder)  # of killed runs
        for name, content in contents.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise OutputError(f"Cannot write the report to {folder}: {error.strerror or error}.") from error
    return [folder / name for name in contents]
