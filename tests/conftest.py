"""What several test files share: fresh processes, copies of the repository, made-up checkpoints on loopback."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hypothesis
import pytest
from resnext_hub.telemetry import SWITCHES, silence

from .support import faulty_server
from .support.faulty_server import FaultyServer
from .support.processes import serving
from .support.slow import SlowTests

if TYPE_CHECKING:  # xdist's own process needs no torch: the workers start seconds earlier
    import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

#: Prepended to a script: as if resnext_hub were not installed (make setup installs it editable).
UNINSTALLED = (
    "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in getattr(f, '__name__', '')]\n"
)

#: ... and as if pip had never heard of it.
UNINSTALLED_COMPLETELY = UNINSTALLED + (
    "import importlib.metadata as m\ndef none(name): raise m.PackageNotFoundError(name)\nm.distribution = none\n"
)

for library in SWITCHES:  # for what the tests import themselves
    silence(library)
hypothesis.settings.register_profile("untimed", deadline=None)  # a clock decides no test
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SlowTests(config))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[None]:
    """A cache that all workers share and that is not the user's: an engine is built once for the whole suite."""
    import torch

    torch.set_num_threads(1)
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str((base if worker_id == "master" else base.parent) / "torch_home"))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Photos and Tiny ImageNet; users do not have them."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    return SHARED


@pytest.fixture(scope="session")
def built_engines() -> Path:
    """The folder of this suite's engines, resnext_tiny's among them, so that not every fresh process builds its own."""
    from resnext_hub.inference.engines import open_engine
    from resnext_hub.models.manifest import default_manifest
    from resnext_hub.models.store import checkpoints_folder

    open_engine(default_manifest().resolve("resnext_tiny"))
    folder = checkpoints_folder() / ".resnext-hub" / "engines"
    folder.mkdir(parents=True, exist_ok=True)  # without ONNX Runtime nothing has been built
    return folder


@pytest.fixture
def run_python(tmp_path: Path, built_engines: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script in a fresh process, in an empty folder, with a TORCH_HOME of its own; fail with its output."""

    def run(
        script: str, *, check: bool = True, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "torch_home"
        here = tmp_path / "cwd"
        here.mkdir(exist_ok=True)
        engines = home / "hub" / "checkpoints" / ".resnext-hub" / "engines"
        if not engines.exists():
            engines.parent.mkdir(parents=True, exist_ok=True)
            engines.symlink_to(built_engines)
        path = here / "script.py"
        path.write_text(script)
        env = os.environ | {"TORCH_HOME": str(home), "PYTHONPATH": "", "OMP_NUM_THREADS": "1"} | environment
        done = subprocess.run(
            [sys.executable, str(path)], cwd=here, env=env, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            pytest.fail(f"exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


def tracked_files() -> list[str]:
    """What a clone would hold of the working tree: tracked files and new ones that git does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def exported_files() -> list[str]:
    """What GitHub's zip archive, and so torch.hub, would hold: without what .gitattributes says export-ignore to."""
    names = tracked_files()
    tops = sorted({name.split("/")[0] for name in names})
    command = ["git", "check-attr", "export-ignore", "--", *tops]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    ignored = {line.split(":")[0] for line in listed if line.endswith(": set")}
    return [name for name in names if name.split("/")[0] not in ignored]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository with the working tree's files, not committed."""
    folder = tmp_path_factory.mktemp("clone")
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture
def copy_repository(tmp_path: Path) -> Callable[..., Path]:
    """A copy of what the hub archive holds, in a folder of any name, with another manifest if one is given."""

    def copy(name: str = "checkout", manifest: dict[str, Any] | None = None) -> Path:
        target = tmp_path / name
        for file in exported_files():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, target / file)
        if manifest is not None:
            (target / "weights_manifest.json").write_text(json.dumps(manifest))
            from resnext_hub.models.manifest import write_digest

            write_digest(target)
        return target

    return copy


@pytest.fixture
def hub_archive(tmp_path: Path) -> Callable[[Path], Path]:
    """A GitHub-style zip of a copy: everything below one folder named repository-branch."""

    def archive(checkout: Path) -> Path:
        path = tmp_path / f"{checkout.name}.zip"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("resnext-hub-main/", "")  # torch.hub takes the first entry for the folder
            for member in sorted(checkout.rglob("*")):
                if member.is_file() and "__pycache__" not in member.parts:
                    file.write(member, Path("resnext-hub-main") / member.relative_to(checkout))
        return path

    return archive


@pytest.fixture
def put_where_hub_fetches(
    copy_repository: Callable[..., Path], hub_archive: Callable[[Path], Path], tmp_path: Path
) -> Callable[..., Path]:
    """torch.hub's cache after it has fetched GitHub's archive of org/resnext-hub:main."""

    def put(manifest: dict[str, Any] | None = None) -> Path:
        archive = hub_archive(copy_repository("original", manifest))
        hub = tmp_path / "torch_home" / "hub"
        shutil.unpack_archive(archive, hub)
        (hub / "resnext-hub-main").rename(hub / "org_resnext-hub_main")
        return hub / "org_resnext-hub_main"

    return put


class Served(NamedTuple):
    """A web server on loopback: what it serves, where, and the paths that were asked for."""

    folder: Path
    url: str
    log: list[str]


class _Logged(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, log: list[str], **options: Any) -> None:
        self.log = log
        super().__init__(*args, **options)

    def log_message(self, format: str, *args: object) -> None:
        self.log.append(self.path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = tmp_path / "served"
    folder.mkdir()
    log: list[str] = []
    with serving(partial(_Logged, directory=str(folder), log=log)) as url:
        yield Served(folder, url, log)


@pytest.fixture
def publish(served: Served) -> Callable[..., dict[str, Any]]:
    """Serve a state_dict as a checkpoint's published file; return a manifest copy that says where and its hash.

    The hash stays as short as the real manifest's is (a prefix, or whole), and there is none where it has none.
    """
    import torch

    folder, url = served.folder, served.url

    def publish_one(manifest: dict[str, Any], name: str, state: dict[str, Any], legacy: bool = True) -> dict[str, Any]:
        manifest = json.loads(json.dumps(manifest))
        source = manifest["checkpoints"][name]["sources"][0]
        path = folder / "unnamed"
        torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        filename = source["url"].rsplit("/", 1)[1]
        if source["hash"] is not None:
            expected = source["hash"]["value"]
            filename = filename.replace(expected[:8], digest[:8])
            source["hash"]["value"] = digest[: len(expected)]
        path.rename(folder / filename)
        source |= {"url": f"{url}/{filename}", "bytes": (folder / filename).stat().st_size}
        return manifest

    return publish_one


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with faulty_server.serving() as server:
        yield server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time.sleep was asked for; nobody waits."""
    seen: list[float] = []
    monkeypatch.setattr(time, "sleep", seen.append)
    return seen


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the environment named none, in small letters or in capitals."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_proxies: None) -> Path:
    """An empty cache of this test's own, no proxies or mirrors, and retries at once: torch.hub's checkpoints folder."""
    from resnext_hub.models import download

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    for name in ("RESNEXT_HUB_MIRROR", "RESNEXT_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of the size asked for."""
    mounted = []

    def mount(size: int) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True)
        if done.returncode:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A real photo that every installation of matplotlib has."""
    import matplotlib

    path = tmp_path / "photo.jpg"
    shutil.copy(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg", path)
    return path


@pytest.fixture
def manifest_json() -> dict[str, Any]:
    return json.loads((ROOT / "weights_manifest.json").read_text())


def randomise(network: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter and statistic a value of its own, so that a swap or an omission shows.

    A weight repeats a million normal values: as many as it has would take seconds in a large network. The million is a
    prime number, so that no two filters are alike, and each tensor starts at another of the values.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(1_000_003).normal_(generator=generator)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)
        elif name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            tensor.uniform_(0.5, 1.0, generator=generator)
        elif tensor.ndim == 1:
            tensor.uniform_(-0.1, 0.1, generator=generator)
        else:
            start = int(torch.randint(len(noise), (1,), generator=generator))
            noise = torch.cat([noise[start:], noise[:start]])
            scale = (2 / tensor[0].numel()) ** 0.5
            for part in tensor.view(-1).split(len(noise)):
                part.copy_(noise[: len(part)]).mul_(scale)


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled images, read only: three classes told apart by colour, noisy (144 to train on, 48 to validate)."""
    pq = pytest.importorskip("pyarrow.parquet")
    import numpy as np
    import pyarrow as pa
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data") / "colours"
    folder.mkdir()
    for part, count in (("train", 144), ("val", 48)):
        rows: dict[str, list[object]] = {"name": [], "wnid": [], "jpeg": []}
        for i in range(count):
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[:, :, i % 3] += 100
            file = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
            rows["name"].append(f"{part}{i}")
            rows["wnid"].append(f"n{i % 3 + 1}")
            rows["jpeg"].append(file.getvalue())
        pq.write_table(pa.table(rows), folder / f"{part}.parquet")
    (folder / "classes.tsv").write_text("".join(f"n{i}\tname of n{i}\n" for i in (1, 2, 3)))
    return folder


@pytest.fixture
def photo_proxy(photo: Path) -> Iterator[str]:
    """An HTTP proxy on loopback that answers every request with a photo and reaches nothing."""
    content = photo.read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path.startswith("http://images.")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with serving(Handler) as url:
        yield url
