"""A cluster of three nodes on this machine, one of them lost in the middle: the table is the one-machine table."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from resnext_hub import cli
from resnext_hub.errors import EngineError, OutputError
from resnext_hub.inference import cluster
from resnext_hub.inference.bulk import Request, classify_many
from resnext_hub.inference.cluster import _Actor

from ..support.data_sets import tar, write
from ..support.made_runs import TINY, jpeg

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray[data]: the extra 'cluster'")

# Every node has 3 logical CPUs, so an actor; the node that is lost is not the driver's. It is lost without notice when
# the first parts are there; that the others are not, the test sees. Or it is but one actor's process that is killed.
# (`Cluster.remove_node` would wait for the processes' end, while the other nodes finish the few shards.)
SCRIPT = """
import json, os, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster

source, out, what, lost = sys.argv[1], Path(sys.argv[2]), sys.argv[3], {}
cluster = Cluster()
nodes = [cluster.add_node(num_cpus=3, include_dashboard=False, object_store_memory=100 * 2**20) for _ in range(3)]
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
from resnext_hub.inference.cluster import classify_on_ray

def lose():
    while len(list(out.with_name(out.name + ".parts").glob("part-*.parquet"))) < 2:
        time.sleep(0.01)
    if what == "node":
        own = [psutil.Process(process.pid) for _, process in nodes[2].live_processes()]
        killed = [*own, *(child for process in own for child in process.children(recursive=True))]
    else:
        named = [(p, p.cmdline()) for p in psutil.Process().children(recursive=True)]
        killed = [p for p, command in named if command and "MapWorker" in command[0]][:1]
    for process in killed:
        process.kill()
    lost["parts"] = len(list(out.with_name(out.name + ".parts").glob("part-*.parquet")))

thread = threading.Thread(target=lose, daemon=True)
thread.start()
done = classify_on_ray(source, out, "resnext_tiny", cores=3, features=True, progress=False)
thread.join()
end = time.monotonic() + 60
while (alive := sum(node["Alive"] for node in ray.nodes())) == 3 and what == "node" and time.monotonic() < end:
    time.sleep(0.1)  # the table may be there before the loss is noticed
ray.shutdown()
cluster.shutdown()
print(json.dumps({"images": done.images, "errors": done.errors, "alive": alive, **lost}))
"""


def make_shards(folder: Path, shards: int, images: int) -> str:
    content = [jpeg(i) for i in range(50)]
    for shard in range(shards):
        members = {f"{i:04d}.jpg": content[(shard + i) % 50] if i % 17 else b"broken" for i in range(images)}
        tar(folder / f"s-{shard:03d}.tar", members)
    return str(folder / "s-*.tar")


@needs_ray
@pytest.mark.parametrize(
    ("what", "shards", "images"),
    [
        ("node", 18, 60),
        pytest.param("actor", 18, 60, marks=pytest.mark.soak),
        pytest.param("node", 90, 600, marks=pytest.mark.soak),
    ],
)
def test_a_lost_node_or_actor(what: str, shards: int, images: int, tmp_path: Path, run_python: Any) -> None:
    source = make_shards(tmp_path / "shards", shards, images)
    out = tmp_path / "ray.parquet"
    done = run_python(
        f"import sys\nsys.argv[1:] = [{source!r}, {str(out)!r}, {what!r}]\n{SCRIPT}",
        timeout=300 if images < 100 else 3000,
        PYTHONPATH=os.environ.get("PYTHONPATH", ""),
        RAY_USAGE_STATS_ENABLED="0",
        # A lost node is missed after some seconds instead of half a minute.
        RAY_health_check_period_ms="500",
        RAY_health_check_failure_threshold="4" if images < 100 else "30",
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["alive"] == (2 if what == "node" else 3)
    assert told["parts"] < shards
    assert told["images"] == shards * images
    assert told["errors"] == shards * -(-images // 17)
    whole = tmp_path / "whole.parquet"
    classify_many(source, whole, TINY, features=True, progress=False)
    assert whole.read_bytes() == out.read_bytes()
    assert not out.with_name(f"{out.name}.parts").exists()


def test_without_ray(monkeypatch: pytest.MonkeyPatch, capsys: Any, photo: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = str(tmp_path / "o.csv")
    assert cli.main(["classify", str(photo), "--out", out, "--variant", TINY, "--cluster", "ray"]) == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err


def test_a_node_with_another_folder_or_versions(tmp_path: Path) -> None:
    request = Request(str(tmp_path), TINY)
    identity = request.identity(request.open_engine())
    with pytest.raises(OutputError, match=str(tmp_path)):
        _Actor(request, identity, tmp_path / "o.parquet", 1)
    with pytest.raises(OutputError, match="versions.pillow '1'"):
        _Actor(request, identity | {"versions": identity["versions"] | {"pillow": "1"}}, tmp_path / "o.parquet", 1)


@pytest.mark.parametrize("needs", [{"gpus": 1}, {"cores": 3}])
def test_a_cluster_without_room_for_an_actor(
    needs: dict[str, Any], photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would wait for ever. Two nodes of two cores are not one of three."""
    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 9.0, "GPU": 1.0}}]
    monkeypatch.setattr(cluster, "_import_ray", lambda: SimpleNamespace(nodes=lambda: nodes))
    with pytest.raises(EngineError, match="CPUs.*GPUs"):
        cluster.classify_on_ray(str(photo), tmp_path / "o.csv", TINY, progress=False, **needs)


@pytest.mark.parametrize("named_by", ["file", "variable"])
def test_a_cluster_that_is_gone(named_by: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed `ray start` leaves its address behind, and `ray.init` would try it again and again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    write(tmp_path / "ray" / "ray_current_cluster", address if named_by == "file" else "127.0.0.1:1")
    if named_by == "variable":
        monkeypatch.setenv("RAY_ADDRESS", f"ray://{address}")
    monkeypatch.setattr(cluster, "import_quietly", lambda name: SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(EngineError, match=f"{address}.*ray_current_cluster"):
        cluster.classify_on_ray(str(photo), tmp_path / "o.csv", TINY, progress=False)
