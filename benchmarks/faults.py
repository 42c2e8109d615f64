"""Compare downloads under the same faults: this project's, torch.hub's, huggingface_hub's and pooch's.

    python benchmarks/faults.py [--only cut,html] [--seconds 100]

A loopback server (tests/support/faulty_server.py) serves one small checkpoint and misbehaves by script. Every cell is a
process with an empty cache, the library's defaults and a time limit; then the server works again, and a second process
asks for the same file. The result is what is on the disk: the files under their final names and their hashes, the bytes
served, and the exit status. Nothing leaves the machine: all names resolve to the server, and a connection to any other
address is recorded and refused.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import select
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import trustme
from resnext_hub.tests.support.faulty_server import FaultyServer, serving

# Imports a library once, and forks a process for each download. Names resolve to an address that stands for the server;
# whatever else is connected to is noted and refused.
FORKS = """
import json, os, signal, socket, sys, traceback
connect, lookup = socket.socket.connect, socket.getaddrinfo
def getaddrinfo(host, *rest, **options):
    if str(host).endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return lookup("93.184.216.34" if str(host).endswith(".example.org") else host, *rest, **options)
def guarded(self, address):
    if self.family == socket.AF_INET and address[0] == "93.184.216.34":
        address = ("127.0.0.1", task["port"])
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
        open(task["folder"] + ".elsewhere", "a").write(f"{address[0]}\\n")
        raise OSError("not connected: this is a benchmark")
    return connect(self, address)
socket.getaddrinfo, socket.socket.connect = getaddrinfo, guarded
IMPORTS
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    task = json.loads(line)
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(task["report"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.environ.update(task["environment"])
        status = 0
        try:
            download(**{name: task[name] for name in ("url", "folder", "digest", "length")})
        except BaseException:
            traceback.print_exc()
            status = 1
        open(task["report"], "w").write(str(status))
        os._exit(status)
    print(child, flush=True)
"""

CLIENTS = {
    "resnext-hub": """
import dataclasses, filelock, torch.hub
from resnext_hub.models.download import local_file
from resnext_hub.models.manifest import Hash, Source, default_manifest
def download(url, folder, digest, length):
    torch.hub.set_dir(folder)
    source = Source(url, None, None, length, Hash("sha256-prefix", digest[:8]))
    local_file(dataclasses.replace(default_manifest().resolve("resnet18_ssl"), sources=(source,)), progress=False)
""",
    "torch.hub": """
import torch.hub
def download(url, folder, digest, length):
    torch.hub.set_dir(folder)
    torch.hub.load_state_dict_from_url(url, progress=False)
""",
    "torch.hub, check_hash": """
import torch.hub
def download(url, folder, digest, length):
    torch.hub.set_dir(folder)
    torch.hub.load_state_dict_from_url(url, progress=False, check_hash=True)
""",
    "huggingface_hub": """
os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
from urllib.parse import urlsplit
from huggingface_hub import hf_hub_download
def download(url, folder, digest, length):
    parts = urlsplit(url)
    hf_hub_download(
        "org/model", parts.path.rsplit("/", 1)[1], cache_dir=folder, endpoint=f"{parts.scheme}://{parts.netloc}"
    )
""",
    "pooch, known_hash": """
import pooch
def download(url, folder, digest, length):
    pooch.retrieve(url, known_hash="sha256:" + digest, fname=url.rsplit("/", 1)[1], path=folder)
""",
}


class Client:
    """A process that has imported a library and forks others, which download."""

    def __init__(self, name: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKS.replace("IMPORTS", CLIENTS[name])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.lock = threading.Lock()

    def start(self, url: str, folder: Path, port: int, environment: dict[str, str]) -> Run:
        handle, report = tempfile.mkstemp()
        os.close(handle)
        os.unlink(report)
        task = {"url": url, "folder": str(folder), "digest": DIGEST, "length": len(CONTENT), "port": port}
        task |= {"environment": environment, "report": report}
        with self.lock:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            return Run(int(self.process.stdout.readline()), Path(report))


class Run:
    """A process that downloads, identified by a descriptor, since its id may be reused after its end."""

    def __init__(self, process: int, report: Path) -> None:
        self.process, self.report = process, report
        self.hangs = False
        try:
            self.descriptor: int | None = os.pidfd_open(process)
        except ProcessLookupError:  # it has ended
            self.descriptor = None

    def wait(self, seconds: float) -> bool:
        """True if it exits with status 0 in time; otherwise it is killed."""
        if self.descriptor is not None:
            begun = time.monotonic()
            while not select.select([self.descriptor], [], [], 0.1)[0]:
                if time.monotonic() - begun - self._starved() < seconds:
                    continue
                self.hangs = True
                self.kill()
                select.select([self.descriptor], [], [])
                break
            os.close(self.descriptor)
            self.descriptor = None
        return self.report.exists() and self.report.read_text() == "0"

    def _starved(self) -> float:
        """Seconds that it waited for a processor; they are not counted against the library."""
        try:
            return int(Path(f"/proc/{self.process}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            return 0.0

    def kill(self) -> None:
        if self.descriptor is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    @property
    def words(self) -> str:
        """The name of the error that ended it."""
        lines = Path(f"{self.report}.log").read_text().strip().splitlines() or ["no message"]
        named = [
            line.split(":")[0].rsplit(".", 1)[-1] for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)
        ]
        return named[-1] if named else lines[-1][:60]


def checkpoint() -> bytes:
    """0.5 MB in the published files' format."""
    file = io.BytesIO()
    state = {f"w{i}": torch.rand(32, 1000, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


CONTENT = checkpoint()
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"w-{DIGEST[:8]}.pth"
HALF = len(CONTENT) // 2


@dataclasses.dataclass(frozen=True)
class Fault:
    """The server's behaviour: a few steps, or one step for all requests."""

    title: str
    script: tuple[str, ...] = ()
    always: str = "good"
    host: str = ""  # "" for the server's own address
    tls: bool = False
    proxy: bool = False
    disk: int | None = None  # bytes
    kill_at: int | None = None  # bytes of the part
    processes: int = 1
    spoil: Callable[[bytes], bytes] | None = None  # of a file that lies in the cache
    read_only: bool = False


def _flip(content: bytes) -> bytes:
    return content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:]


FAULTS = {
    "good": Fault("none"),
    "cut": Fault("cut at half, once", (f"cut {HALF}",)),
    "cuts": Fault("cut at every tenth", tuple(f"cut {len(CONTENT) // 10}" for _ in range(9))),
    "norange": Fault("cut at half; 200 in answer to Range", (f"cut {HALF}", "whole")),
    "otherfile": Fault("cut at half; 206 of another file, another ETag", (f"cut {HALF}", "otherfile")),
    "short": Fault("Content-Length too small", always="announce -1000"),
    "long": Fault("Content-Length too large", always="announce 1000"),
    "unannounced": Fault("no Content-Length", always="unannounced"),
    "silent": Fault("no more data after 20 kB, once", ("slow 1000",)),
    "loris": Fault("slow loris: a byte of the body each 0.1 s", always="drip 0.1"),
    "headers": Fault("slow loris in the headers", always="headers 0.1"),
    "503": Fault("503, once", ("503",)),
    "503after": Fault("503 with Retry-After: 2, once", ("503 2",)),
    "429": Fault("429, once", ("429",)),
    "500": Fault("500, always", always="500"),
    "404": Fault("404", always="404"),
    "html": Fault("a web page with status 200", always="html"),
    "gzip": Fault("gzip-encoded, not requested", always="gzip"),
    "wrong": Fault("one bit is wrong", always="wrong"),
    "loop": Fault("redirect loop", always="loop"),
    "file": Fault("redirect to file:", always="redirect file:///etc/hostname"),
    "ftp": Fault("redirect to ftp:", always="redirect ftp://files.example.org/w.pth"),
    "inside": Fault(
        "redirect to 169.254.169.254", always="redirect http://169.254.169.254/latest/", host="weights.example.org"
    ),
    "dns": Fault("unknown host name", host="weights.invalid"),
    "tls": Fault("self-signed certificate", tls=True),
    "proxy": Fault("proxy requires a password (407)", always="407", host="weights.example.org", proxy=True),
    "full": Fault("disk full at 60 %", disk=int(len(CONTENT) * 0.6)),
    "killed": Fault("killed (SIGKILL) at half", ("slow 0.2",), kill_at=HALF),
    "eight": Fault("8 processes at once", always="slow 0.2", processes=8),
    "truncated": Fault("the cached file is cut short", spoil=lambda content: content[:HALF]),
    "flipped": Fault("a bit of the cached file is flipped", spoil=_flip),
    "readonly": Fault("read-only cache that has the file", read_only=True),
}


def kept(folder: Path) -> list[str]:
    """Hashes of the files under their final names."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob(NAME) if path.is_file()]


def mount(folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def url_of(fault: Fault, server: FaultyServer, client: str) -> str:
    host = fault.host or "127.0.0.1"
    base = f"{'https' if fault.tls else 'http'}://{host}" + ("" if fault.host else f":{server.server_port}")
    return f"{base}/org/model/resolve/main/{NAME}" if client == "huggingface_hub" else f"{base}/{NAME}"


def try_one(fault: Fault, name: str, client: Client, folder: Path, seconds: float) -> str:
    """The outcome of a fault: the cell of the table."""
    with serving() as server:
        server.content = CONTENT
        url = url_of(fault, server, name)
        start = functools.partial(client.start, url, folder, server.server_port)
        if fault.tls:
            authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        if fault.disk or fault.read_only:
            mount(folder, f"size={fault.disk or 64 << 20}")
        try:
            if fault.spoil or fault.read_only:  # first, a good download
                start({}).wait(seconds)
                for path in folder.rglob(NAME):
                    if fault.spoil:
                        path.write_bytes(fault.spoil(CONTENT))
                if fault.read_only:
                    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            server.script, server.always, server.sent = list(fault.script), fault.always, 0
            proxies = {"http_proxy": server.url, "https_proxy": server.url} if fault.proxy else {}
            cell = _first_run(fault, folder, server, [start(proxies) for _ in range(fault.processes)], seconds)
            server.script, server.always, server.sent = [], "good", 0
            if fault.host.endswith(".invalid") or fault.tls or fault.read_only:
                return cell
            if fault.disk:
                subprocess.run(["mount", "-o", f"remount,size={64 << 20}", folder], check=True)
            ended = start({}).wait(seconds)
            if "right file" in cell and ended and not server.sent:
                return cell
            if not ended:
                return f"{cell}; then **still fails**"
            if set(kept(folder)) != {DIGEST}:
                return f"{cell}; then **still wrong**"
            return f"{cell}; then right" + (f", {server.sent / len(CONTENT):.0%} fetched" if server.sent else "")
        finally:
            if fault.disk or fault.read_only:
                subprocess.run(["umount", "-l", folder], check=True)


def _first_run(fault: Fault, folder: Path, server: FaultyServer, runs: list[Run], seconds: float) -> str:
    if fault.kill_at is not None:
        begun = time.monotonic()
        while server.sent < fault.kill_at and time.monotonic() < begun + seconds:
            time.sleep(0.01)
        runs[0].kill()
    ended = sum(run.wait(seconds) for run in runs) == len(runs)
    found = set(kept(folder))
    elsewhere = Path(f"{folder}.elsewhere")
    if elsewhere.exists():
        return f"**connects to {elsewhere.read_text().split()[0]}**"
    if found - {DIGEST} and (ended or not fault.spoil):
        return "**wrong file " + ("used**" if ended else "kept**")
    if any(run.hangs for run in runs):
        return f"**hangs** (> {seconds:.0f} s)"
    if ended and found == {DIGEST}:
        times = server.sent / len(CONTENT)
        return "right file" + (f", {times:.1f} times fetched" if times > 1.05 else "")
    if fault.kill_at is not None:
        return "nothing under its name" if not found else "right file"
    return (
        f"error ({next((run.words for run in runs if not run.report.exists() or run.report.read_text() != '0'), '')})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(FAULTS), help="names of faults, separated by commas (default: all)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=100.0,
        help="time after which a process counts as hanging (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=8, help="processes at a time (default: %(default)s)")
    options = parser.parse_args()
    names = options.only.split(",")
    clients = {name: Client(name) for name in CLIENTS}
    with tempfile.TemporaryDirectory() as scratch, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        tempfile.tempdir = scratch
        cells = {
            (fault, name): pool.submit(
                try_one, FAULTS[fault], name, client, Path(scratch) / f"{fault}-{i}", options.seconds
            )
            for fault in names
            for i, (name, client) in enumerate(clients.items())
        }
        print(f"{', '.join(f'{name} {version(name)}' for name in ('torch', 'huggingface_hub', 'pooch'))}; ", end="")
        print(f"{len(CONTENT):,} bytes.\n\n| Fault | {' | '.join(clients)} |\n{'|---' * (len(clients) + 1)}|")
        for fault in names:
            row = " | ".join(cells[fault, name].result() for name in clients)
            print(f"| {FAULTS[fault].title} | {row} |", flush=True)
    for client in clients.values():
        client.process.communicate()


if __name__ == "__main__":
    main()
