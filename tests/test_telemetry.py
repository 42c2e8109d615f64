"""Nothing leaves the machine unasked: what a process looks up, connects to and writes into HOME, seen from outside.

A child gets an empty HOME, an environment without CI (which silences some libraries), and support/recorder.c preloaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from resnext_hub.telemetry import SWITCHES, import_quietly

from .conftest import ROOT, tracked_files

SOURCE = ROOT / "tests" / "support" / "recorder.c"

#: What may be in HOME afterwards (docs/privacy.md says it of each).
DOCUMENTED = (".cache/torch/hub/", ".cache/matplotlib/", ".cache/wandb/", ".ray/auth_token")

COMMAND = "import sys; from resnext_hub import cli; sys.exit(cli.main())"

#: Classify a photo, say so, and stay until standard input is closed.
CLASSIFY = """
import sys
from resnext_hub.inference.classifier import classifier
assert len(classifier("resnext_tiny", engine=sys.argv[1])(sys.argv[2])) == 5
print("ready", flush=True)
sys.stdin.read()
"""


class Outside:
    """A HOME of its own for children, and what a recorder saw of them."""

    def __init__(self, folder: Path, recorder: Path, engines: Path) -> None:
        self.home, self._record = folder / "home", folder / "record"
        ours = self.home / ".cache" / "torch" / "hub" / "checkpoints" / ".resnext-hub"
        ours.mkdir(parents=True)
        (ours / "engines").symlink_to(engines)
        self._record.touch()
        self.environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | {
            "HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "LD_PRELOAD": str(recorder),
            "RECORDED": str(self._record),
        }

    def start(self, script: str, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        command, streams = (
            [sys.executable, "-c", script, *map(str, arguments)],
            {"stdin": -1, "stdout": -1, "stderr": -2},
        )
        return subprocess.Popen(command, cwd=self.home.parent, env=self.environment | environment, text=True, **streams)

    def run(self, script: str, *arguments: str | Path, **environment: str) -> str:
        with self.start(script, *arguments, **environment) as process:
            try:
                said, _ = process.communicate(timeout=300)
            finally:
                process.kill()
        assert process.returncode == 0, said
        return said

    @property
    def seen(self) -> set[str]:
        """Lookups, connections and messages, as "lookup example.org"."""
        return set(self._record.read_text().splitlines())

    @property
    def undocumented(self) -> list[str]:
        """Files in HOME of which the documentation does not tell."""
        files = [str(path.relative_to(self.home)) for path in self.home.rglob("*") if not path.is_dir()]
        return sorted(file for file in files if not file.startswith(DOCUMENTED))


@pytest.fixture(scope="session")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("the recorder needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("recorder") / "recorder.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.fixture
def outside(tmp_path: Path, recorder: Path, built_engines: Path) -> Outside:
    (tmp_path / "outside").mkdir()
    return Outside(tmp_path / "outside", recorder, built_engines)


def needs(*modules: str) -> pytest.MarkDecorator:
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"needs {', '.join(lacking)}")


def test_the_recorder_sees_and_refuses(outside: Outside) -> None:
    said = outside.run("""
import errno, socket
for family, address in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
    print(socket.socket(family).connect_ex((address, 80)) == errno.ENETUNREACH)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for ask in (
    lambda: socket.getaddrinfo("a.example", 80),
    lambda: socket.gethostbyname_ex("b.example"),
    lambda: udp.sendto(b"", ("203.0.113.2", 9)),
    lambda: udp.sendto(b"", ("224.0.0.251", 5353)),
):
    try: print(ask())
    except OSError: print(True)
print(bool(socket.getaddrinfo("localhost", 80) and socket.getaddrinfo(socket.gethostname(), 80)))
""")
    assert said.split() == ["True"] * 7
    lookups = {"lookup a.example", "lookup b.example"}
    assert outside.seen == lookups | {
        "connect 198.51.100.1", "connect 2001:db8::1", "send 203.0.113.2", "send 224.0.0.251"
    }  # fmt: skip


def test_the_command_line(outside: Outside, photo: Path) -> None:
    classify = ["classify", photo, "--variant", "resnext_tiny", "--engine", "torch"]
    outside.run(COMMAND, *classify, "--picture", "out.png")
    assert (outside.seen, outside.undocumented) == (set(), [])


@needs("openvino")
def test_openvino(outside: Outside, photo: Path) -> None:
    outside.run(CLASSIFY, "openvino", photo)
    assert (outside.seen, outside.undocumented) == (set(), [])


@needs("onnxruntime")
def test_onnxruntime(outside: Outside, tmp_path: Path, recorder: Path, built_engines: Path, photo: Path) -> None:
    """It reports seconds after it was imported: the silent process lives as long as one that reports."""
    privacy = Path(import_quietly("onnxruntime").__file__).with_name("Privacy.md")
    if "ORT_DISABLE_TELEMETRY" not in privacy.read_text(errors="replace"):
        pytest.skip("this ONNX Runtime has no such switch")
    (tmp_path / "turned_on").mkdir()
    turned_on = Outside(tmp_path / "turned_on", recorder, built_engines)
    with (
        outside.start(CLASSIFY, "onnxruntime", photo) as silent,
        turned_on.start(CLASSIFY, "onnxruntime", photo, ORT_DISABLE_TELEMETRY="0") as reporting,
    ):
        for process in (silent, reporting):
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert "ready\n" in lines, process.communicate()  # after the licence line
        end = time.monotonic() + 120
        while not turned_on.seen and time.monotonic() < end:
            time.sleep(0.1)
        for process in (silent, reporting):
            process.communicate()  # closes standard input
    assert "lookup mobile.events.data.microsoft.com" in turned_on.seen
    assert any("deviceid" in file for file in turned_on.undocumented)
    assert (outside.seen, outside.undocumented) == (set(), [])


@needs("openvino", "openvino_telemetry")
def test_openvinos_telemetry(outside: Outside) -> None:
    """... and from openvino alone: the user's own import of it works."""
    script = """
import sys
from resnext_hub.telemetry import import_quietly
import_quietly("openvino").convert_model
print(sys.modules["openvino.tools.ovc.convert_impl"].tm.__name__)
import openvino_telemetry
"""
    assert outside.run(script).split() == ["openvino.tools.ovc.telemetry_stub"]
    assert (outside.seen, outside.undocumented) == (set(), [])
    (outside.home / "intel").mkdir()
    (outside.home / "intel" / "openvino_telemetry").write_text("1")
    assert outside.run(script).split() == ["openvino_telemetry"]


@needs("onnx", "onnxscript", "onnxruntime", "openvino")
def test_exports(outside: Outside) -> None:
    """Each is verified in the library that runs it: ONNX Runtime, OpenVINO."""
    outside.run(
        "from resnext_hub import cli\n"
        "for arguments in ('onnx --out fp32', 'tensorrt --precision bf16 --out bf16'):\n"
        "    assert cli.main(['export', '--variant', 'resnext_tiny', '--to', *arguments.split()]) == 0\n"
    )
    assert (outside.seen, outside.undocumented) == (set(), [])


@needs("tensorboard")
def test_training_and_evaluation(outside: Outside, colours: Path) -> None:
    small = colours / "val.parquet"
    outside.run(
        COMMAND, *f"train --variant resnext_tiny --data {small} --val {small} --out run --epochs 1 --batch 16".split()
    )
    assert list((outside.home.parent / "run" / "tensorboard").iterdir())
    outside.run(COMMAND, *f"evaluate --variant run --data {small} --out report --engine torch".split())
    assert (outside.seen, outside.undocumented) == (set(), [])


@needs("mlflow", "sqlalchemy", "wandb")
def test_loggers(outside: Outside, colours: Path) -> None:
    """Without a server or an account of the user's, MLflow writes a database and Weights & Biases files."""
    small = colours / "val.parquet"
    words = f"train --variant resnext_tiny --data {small} --val {small} --out run --epochs 2 --batch 16 --workers 0"
    outside.run(COMMAND, *f"{words} --log mlflow wandb".split())
    with contextlib.closing(sqlite3.connect(outside.home.parent / "mlflow.db")) as database:
        found = database.execute("SELECT step FROM metrics WHERE key = 'val_top1' ORDER BY step").fetchall()
        assert found == [(1,), (2,)]
        assert database.execute("SELECT value FROM params WHERE key = 'optimizer'").fetchone() == ("adamw",)
        assert database.execute("SELECT name, status FROM runs").fetchall() == [("run", "FINISHED")]
    assert len(list((outside.home.parent / "run" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert not (outside.home.parent / "run" / "tensorboard").exists()
    assert (outside.seen, outside.undocumented) == (set(), [])


@needs("ray")
@pytest.mark.soak
def test_a_ray_cluster(outside: Outside, colours: Path) -> None:
    classify = f"classify {colours}/val.parquet --variant resnext_tiny --out t.csv --cluster ray"
    outside.run(COMMAND, *classify.split(), RAY_ADDRESS="local")  # no cluster that runs on this machine
    # Of a cluster's head Ray asks which cloud it is in, reports or not, and has no switch for it.
    assert outside.seen <= {"lookup metadata.google.internal", "connect 169.254.169.254"}
    assert outside.undocumented == []


@needs("gradio", "httpx")
def test_the_page(outside: Outside, photo: Path) -> None:
    from .support.demo_visitor import Visitor, page_process

    with page_process(outside.home, "auto", outside.environment) as page, Visitor(page.url) as visitor:
        assert visitor.client.get("/").status_code == 200
        assert "military uniform" in visitor.photo(photo.read_bytes())
        # Gradio would download what is named here, for any visitor and into any input.
        file = {"path": "http://files.example/x", "meta": {"_type": "gradio.FileData"}}
        for what, event in (("photo", "select"), ("url", "submit"), ("zip", "upload"), ("variants", "input")):
            assert visitor.join(what, event, [file, file, file, file]).status_code == 403
        page.process.terminate()
        page.process.wait(60)
    assert (outside.seen, outside.undocumented) == (set(), [])


def test_importing_the_package_silences_nothing_and_a_users_variables_stay(outside: Outside) -> None:
    modules = ["cli", "hubconf", "inference.classifier", "inference.cluster", "deploy.export", "telemetry"]
    script = f"""
import importlib, os
for name in {modules!r}: importlib.import_module(f"resnext_hub.{{name}}")
print(*os.environ)
from resnext_hub import telemetry
for library in telemetry.SWITCHES: telemetry.silence(library)
print(os.environ["ORT_DISABLE_TELEMETRY"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""
    imported, silenced = outside.run(script, ORT_DISABLE_TELEMETRY="0").splitlines()
    switches = {name for switches in SWITCHES.values() for name in switches}
    assert switches & set(imported.split()) == {"ORT_DISABLE_TELEMETRY"}
    assert silenced == "0 0"


def sources() -> Sequence[str]:
    return [name for name in tracked_files() if name.endswith(".py") and not name.startswith("tests/")]


@pytest.mark.parametrize("library", SWITCHES)
def test_nothing_imports_a_reporting_library_before_it_is_silent(library: str) -> None:
    statement = re.compile(rf"^\s*(import|from) {library}\b", re.MULTILINE)
    variables = "|".join([f'silence\\("{library}"\\)', *SWITCHES[library]])
    for name in sources():
        text = (ROOT / name).read_text(encoding="utf-8")
        if first := statement.search(text):
            assert re.search(variables, text[: first.start()]), f"{name}: {first[0].strip()}"


def test_what_is_written_is_documented() -> None:
    text = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
    names = [*DOCUMENTED, *(name for switches in SWITCHES.values() for name in switches)]
    assert [name for name in names if name not in text] == []
