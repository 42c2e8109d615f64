"""The command line as scripts and people use it."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pyarrow.parquet as pq
import pytest
from resnext_hub import cli, errors
from resnext_hub.cli import console
from resnext_hub.inference.engines import ENGINES
from resnext_hub.models.manifest import ROOT, default_manifest
from resnext_hub.packages import missing
from resnext_hub.processing_utils.preprocessing import GRADES

from ..support.data_sets import write


def test_list_fits_a_terminal_and_names_everything(capsys: Any) -> None:
    assert cli.main(["list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(len(line) <= 80 for line in out.splitlines())
    names = [line.split()[0] for line in out.splitlines()[1:] if re.match(r"\w+(\.\w+)? .*\d", line)]
    assert names[: len(default_manifest().checkpoints)] == list(default_manifest().checkpoints)
    swsl = next(line for line in out.splitlines() if line.startswith("resnext101_32x16d_swsl"))
    assert "84.80" in swsl
    assert "83.34" in swsl


def test_list_json(capsys: Any) -> None:
    assert cli.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(default_manifest().checkpoints)
    assert rows[0]["license"] == "CC-BY-NC-4.0"


def test_list_by_pattern_and_by_what_is_here(capsys: Any) -> None:
    def names(*arguments: str) -> list[str]:
        assert cli.main(["list", "--json", *arguments]) == 0
        return [row["name"] for row in json.loads(capsys.readouterr().out)]

    assert names("*48d*") == names("48D") == ["resnext101_32x48d_wsl"]
    assert "resnext_tiny" in names("--cached")
    assert cli.main(["list", "efficientnet"]) == 2
    assert cli.main(["list", "tiny"]) == 0
    assert "4 MB" in capsys.readouterr().out


def test_info(capsys: Any) -> None:
    assert cli.main(["info", "resnext_tiny"]) == 0
    out, tiny = capsys.readouterr().out, default_manifest().resolve("resnext_tiny")
    assert all(fact in out for fact in ("1.9 M", f"{tiny.published.top1:.2f} /", "research-only", "200", ".pth"))
    assert cli.main(["info", "resnext_tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == tiny.sources[0].bytes
    assert cli.main(["info", "runs/none"]) == 2
    assert "runs/none" in capsys.readouterr().err
    assert cli.main(["info", "xyzzy"]) == 2
    assert "no folder" in capsys.readouterr().err


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_an_image_from_stdin(photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, photo.read_bytes())
    assert cli.main(["classify", "-", "--variant", "resnext_tiny", "--json"]) == 0
    piped = json.loads(capsys.readouterr().out)
    assert piped["image"] == "-"
    assert cli.main(["classify", str(photo), "--variant", "resnext_tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == piped["predictions"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_list_from_stdin_table_to_stdout(
    arguments: list[str], photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["classify", "-", "--variant", "resnext_tiny", "--top", "2", "--quiet"]
    stdin(monkeypatch, f"{photo}\nmissing.jpg\n{photo}\n".encode())
    assert cli.main([*command, "--out", "-", *arguments]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    rows = [json.loads(line) for line in lines] if arguments else list(csv.DictReader(lines))
    assert [row["image"] for row in rows] == [str(photo), "missing.jpg", str(photo)]
    assert [int(row["index"]) for row in rows] == [0, 1, 2]
    assert "No such file" in rows[1]["error"]
    assert not rows[1]["label"]
    assert err.count("\n") == 1  # the failure; --quiet drops the rest
    best = (lambda v: v[0]) if arguments else (lambda v: json.loads(v)[0])
    assert rows[0]["label"] == best(rows[0]["labels"])
    assert rows[0]["synset"] == best(rows[0]["synsets"])
    assert float(rows[0]["probability"]) == best(rows[0]["probabilities"])
    stdin(monkeypatch, f"{photo}\n".encode())
    assert cli.main([*command, "--out", str(tmp_path / "new" / "t.csv")]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.csv"]
    stdin(monkeypatch, photo.read_bytes())
    assert cli.main([*command, "--out", "-"]) == 2


def test_errors_of_a_table_are_redone(photo: Path, capsys: Any, tmp_path: Path) -> None:
    whole = photo.read_bytes()
    for name, content in (("1.jpg", whole), ("2.jpg", whole[:3000]), ("3.jpg", whole)):
        write(tmp_path / "a" / name, content)
    out = tmp_path / "t.parquet"
    command = ["classify", str(tmp_path / "a"), "--variant", "resnext_tiny", "--engine", "torch", "--features"]
    command += ["--out", str(out)]
    assert cli.main(command) == 1
    before = pq.read_table(out)
    assert [error is None for error in before["error"].to_pylist()] == [True, False, True]
    write(tmp_path / "a" / "2.jpg", whole)
    assert cli.main([*command, "--redo-errors", "--top", "3"]) == 2
    assert "top" in capsys.readouterr().err
    assert cli.main([*command, "--redo-errors"]) == 0
    after = pq.read_table(out)
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.take([0, 2]).equals(before.take([0, 2]))
    rows = after.drop_columns(["image", "index"]).to_pylist()
    assert rows[1]["label"] == rows[0]["label"]
    assert after["index"].to_pylist() == [0, 1, 2]
    write(tmp_path / "a" / "4.jpg", whole)
    (tmp_path / "t.parquet.parts").mkdir()
    with filelock.FileLock(tmp_path / "t.parquet.parts" / "lock"):
        assert cli.main([*command, "--redo-errors"]) == 2
    assert "Another process" in capsys.readouterr().err
    assert cli.main([*command, "--redo-errors"]) == 0
    assert "4 images, 1 of them" in capsys.readouterr().err
    rows = pq.read_table(out).drop_columns(["image", "index"]).to_pylist()
    assert rows[3]["label"] == rows[0]["label"]


@pytest.mark.skipif(shutil.which("bash") is None or bool(missing(["argcomplete"])), reason="needs bash and argcomplete")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("resnext-hub cl", {"classify"}),
        ("resnext-hub info resnext_t", {"resnext_tiny"}),
        ("resnext-hub evaluate --variant ru", {"runs/"}),
        ("resnext-hub export --to openv", {"openvino"}),
        ("resnext-hub classify --max", {"--max-pixels"}),
    ],
)
def test_bash_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    """As bash does at a tab, with the function that docs/install.md has users register."""
    (tmp_path / "runs").mkdir()
    script = (
        'eval "$(register-python-argcomplete resnext-hub)"\n'
        f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_TYPE=9\n"
        "_python_argcomplete resnext-hub\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    tools = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert {word.strip() for word in done.stdout.splitlines()} == expected, done.stderr


def test_a_device_that_is_not_here(photo: Path, capsys: Any) -> None:
    command = ["classify", str(photo), "--variant", "resnext_tiny", "--device"]
    assert cli.main([*command, "xpu"]) == 2
    assert "xpu" in capsys.readouterr().err
    assert cli.main([*command, "cpu"]) == 0


def test_classify(photo: Path, capsys: Any, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "picture.png"
    command = ["classify", str(photo), "--variant", "resnext_tiny", "--top", "3", "--picture", str(picture)]
    assert cli.main(command) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == str(photo)
    shares = [float(line.split("%")[0]) for line in lines]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_classify_json_and_a_broken_photo_among_good_ones(photo: Path, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:5000])
    photos = [str(photo), str(tmp_path / "broken.jpg"), str(tmp_path / "none.jpg"), str(photo)]
    assert cli.main(["classify", *photos, "--variant", "resnext_tiny", "--json"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["image"] for row in rows] == photos
    assert ["predictions" in row for row in rows] == [True, False, False, True]
    assert "corrupt or incomplete" in rows[1]["error"]
    assert "No such file" in rows[2]["error"]
    assert rows[0] == rows[3]
    assert rows[0]["predictions"][0].keys() == {"index", "synset", "label", "probability"}
    assert err.count("resnext-hub: ") == 2
    assert cli.main(["classify", photos[1], "--variant", "resnext_tiny", "--truncated", "keep"]) == 0
    assert cli.main(["classify", photos[0], "--variant", "resnext_tiny", "--max-pixels", "10"]) == 1
    assert photos[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--variant resnext50", "resnext50_32x4d"),
        ("--variant resnext_tiny --top 201", "--top"),
        ("b.jpg --variant resnext_tiny --picture p.png", "--picture"),
        ("--variant resnext_tiny --picture p.xyz", ".png"),
        ("--variant resnext_tiny --picture photo.jpg", "--picture"),
        ("--variant resnext_tiny --out - --resume", "--resume"),
        ("--variant resnext_tiny --out t.parquet --overwrite --redo-errors", "--redo-errors"),
        ("--variant resnext_tiny --redo-errors", "--redo-errors"),
    ],
)
def test_wrong_arguments(arguments: str, named: str, photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photo.parent)
    before = photo.read_bytes()
    assert cli.main(["classify", "photo.jpg", *arguments.split()]) == 2
    assert named in capsys.readouterr().err
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("nonsense", "resnext-hub"),
        ("classify", "resnext-hub classify"),
        ("classify a.jpg --top 0", "resnext-hub classify"),
        ("classify a.jpg --varient x", "resnext-hub classify"),
        ("cache remove x --al", "resnext-hub cache remove"),
    ],
)
def test_arguments_that_do_not_parse(arguments: str, command: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    why, way = capsys.readouterr().err.splitlines()  # no lines of usage
    assert why.startswith(f"{command}: ")
    assert way.endswith(f"{command} --help")


def test_a_url_is_fetched_once(photo: Path, served: Any, capsys: Any, tmp_path: Path) -> None:
    folder, url = served.folder, served.url
    (folder / "once.jpg").write_bytes(photo.read_bytes())
    command = ["classify", f"{url}/once.jpg", "--allow-private", "--variant", "resnext_tiny"]
    assert cli.main([*command, "--picture", str(tmp_path / "p.png")]) == 0
    assert served.log.count("/once.jpg") == 1
    assert cli.main(["classify", f"{url}/once.jpg", "--variant", "resnext_tiny"]) == 1
    assert "refused" in capsys.readouterr().err


def test_a_missing_photo_does_not_wait_for_weights(capsys: Any) -> None:
    assert cli.main(["classify", "missing.jpg"]) == 1
    assert capsys.readouterr().err == "resnext-hub: No such file: missing.jpg\n"


def test_unreachable_weights(
    photo: Path, run_python: Any, copy_repository: Any, manifest_json: Any, served: Any
) -> None:
    manifest = json.loads(json.dumps(manifest_json))
    url = f"{served.url}/none-12345678.pth"
    for checkpoint in manifest["checkpoints"].values():
        if checkpoint["entrypoint"] == "resnext50_32x4d":
            checkpoint["sources"] = [checkpoint["sources"][0] | {"url": url}]
    root = copy_repository("resnext_hub", manifest)
    done = run_python(
        f"import sys\nsys.path.insert(0, {str(root.parent)!r})\n"
        f"from resnext_hub import cli\nsys.exit(cli.main(['classify', {str(photo)!r}]))\n",
        check=False,
    )
    assert done.returncode == 3
    assert re.search(rf"Tried: {url} \(.*404.* resnext_tiny", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (errors.ImageError("no image"), 1, "no image"),
        (errors.SourceError("pass column=NAME"), 2, "pass --column NAME"),
        (errors.UnreachableError("offline"), 3, "offline"),
        (errors.InexactError("differs"), 4, "differs"),
        (errors.FetchError("refused"), 1, "refused"),  # also an OSError
        (PermissionError(13, "denied", "a.csv"), 2, "a.csv: denied"),
        (OSError(28, "no space"), 2, "out.csv: no space"),
        (ValueError("top"), 2, "top"),
        (KeyboardInterrupt(), 130, "--resume"),
    ],
)
def test_an_error_ends_a_command_with_its_status(error: BaseException, status: int, shown: str, capsys: Any) -> None:
    def run() -> int:
        raise error

    assert console.status_of(run, Path("out.csv"), resumable=True) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert shown in printed.err
    assert printed.err.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    def run() -> int:
        raise KeyError("fault")

    with pytest.raises(KeyError):
        console.status_of(run)


def test_a_reader_that_has_seen_enough() -> None:
    command = f"{shlex.quote(sys.executable)} -m resnext_hub list --json | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_help_fits_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = "list info download classify train evaluate export demo hashtags score select cache".split()  # noqa: SIM905
    for command in ([], *([name] for name in names), ["cache", "remove"], ["hashtags", "targets"]):
        with pytest.raises(SystemExit):
            cli.main([*command, "--help"])
        assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("name", [".", "list.txt", "shards.tar", "shards.tar.gz", "table.parquet", "*.jpg"])
def test_what_holds_many_images_asks_for_a_table(name: str, tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["classify", str(tmp_path / name)]) == 2
    assert "--out" in capsys.readouterr().err


def test_engines_by_name(photo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["classify", str(photo), "--variant", "resnext_tiny", "--json", "--engine"]
    assert cli.main([*command, "torch"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"]
    assert cli.main([*command, "tensorrt"]) == 2
    assert "auto, torch, onnxruntime" in capsys.readouterr().err
    monkeypatch.setattr("resnext_hub.inference.engines.engine_cache.missing", list)
    assert cli.main([*command, "openvino"]) == 2
    assert "pip install openvino onnx onnxscript" in capsys.readouterr().err


def test_the_help_names_every_engine_and_grade(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["classify", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ENGINES)
    assert f"{{{','.join(GRADES)}}}" in text


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Pass overwrite=True.", "Pass --overwrite."),
        ("Pass column=NAME, one of left, right.", "Pass --column NAME, one of left, right."),
        ("pass top=5, or max_classes=3", "pass --top 5, or --max-classes 3"),
        ("for cuda pass engine='torch'.", "for cuda pass --engine torch."),
        ("already has version 1: pass version=2", "already has version 1: pass --model-version 2"),
        ("https://a.org/?top=5&name=True and my_top=5", "https://a.org/?top=5&name=True and my_top=5"),
        ("'val' has no overwrite", "'val' has no overwrite"),
    ],
)
def test_the_librarys_arguments_are_the_commands_options(message: str, expected: str) -> None:
    assert console.as_options(message) == expected


def test_every_argument_that_messages_name_is_an_option(capsys: Any) -> None:
    text = ""
    for command in ("classify", "train", "evaluate", "export", "select"):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        text += capsys.readouterr().out
    assert {option for option in console.OPTIONS.values() if not re.search(rf"{option}\b", text)} == set()


def test_no_message_of_the_library_names_an_option() -> None:
    """Only commands may: a Python user passes arguments, which `console.as_options` translates."""
    rooms = {"inference", "models", "processing_utils", "evaluation", "curation", "training", "deploy", "demo"}
    found: list[str] = []
    for file in (file for room in rooms for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Raise):
                texts = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)]
                found += [text for text in texts if re.search(r"(?<!\S)(?<!pip install )--[a-z]", text)]
    assert found == []


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [(1, "image", "1 image"), (0, "image", "0 images"), (2000, "class", "2,000 classes")],
)
def test_a_count_agrees_with_its_noun(number: int, noun: str, expected: str) -> None:
    assert console.counted(number, noun) == expected
