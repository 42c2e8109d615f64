"""Classify many images on a Ray cluster: Ray Data distributes the shards among actors.

An actor has one engine and a number of cores, or one GPU. It processes one shard at a time and commits the parts itself
into the folder ``OUT.parts``, which every node must see (a network file system). If a node is lost, only its unfinished
shard is lost, and another actor processes it again. The content of a shard's parts does not depend on the actor, so the
table is the same as on one machine.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..data.file_names import Passed
from ..data.shards import Shard
from ..errors import EngineError, OutputError
from ..net.addresses import answers
from ..packages import needed
from ..run_identity import differences
from ..telemetry import import_quietly
from .bulk import Options, Request
from .resumable import Summary, process_shards
from .run_folder import Parts

# Shards that are handed to Ray at a time (a million images): their names are in this process's memory.
ROUND = 256


def _import_ray() -> Any:
    with needed("A cluster", "cluster"):
        ray = import_quietly("ray")
        import_quietly("ray.data")
    if not ray.is_initialized():
        _expect_answer()
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    return ray


def _expect_answer() -> None:
    """Raise EngineError if the cluster that `ray.init` would join does not answer: it would wait forever."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # Ray's own default
    record = Path(folder) / "ray" / "ray_current_cluster"
    address = os.environ.get("RAY_ADDRESS") or (record.read_text().strip() if record.is_file() else "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal() and not answers(host.strip("[]"), int(port)):
        raise EngineError(
            f"No Ray cluster answers at {address}. Start it, or run `ray stop` to forget it ({record}), or set "
            "RAY_ADDRESS to another one."
        )


class _Actor:
    """Processes shards with an engine of its own. Images and results do not pass through Ray."""

    def __init__(self, request: Request, identity: dict[str, Any], out: Path, cores: int) -> None:
        engine = request.open_engine()
        if different := differences(identity, request.identity(engine)):
            raise OutputError(
                f"This node would make another table: {different}. Install the same packages on all nodes, and pass "
                "engine=NAME of an engine that all of them have."
            )
        self._parts = Parts(out, identity)
        self._parts.check_identity()
        # By numbers of rows alone, not by the clock: a node that was given up may still write, and writes the same.
        self._process = functools.partial(
            process_shards,
            make_rows=request.predictor(engine),
            batch=request.options["batch"],
            workers=cores,
            commit_seconds=math.inf,
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Process one shard: the one whose pickle is in ``row``."""
        number, shard = int(row["number"]), pickle.loads(row["shard"])  # noqa: S301  # the driver's own
        self._parts.refresh(number)  # a lost node may have committed some of it
        passed = getattr(shard, "passed", Passed())
        passed.clear()  # the driver's
        return {"rows": self._process([(number, shard)], self._parts), "passed": json.dumps(passed)}


def classify_on_ray(
    source: str | Sequence[str],
    out: str | Path,
    variant: str,
    *,
    cores: int = 1,
    gpus: float = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Unpack[Options],
) -> Summary:
    """`bulk.classify_many` on the Ray cluster that this process is connected to (else `ray.init` finds or starts one).

    Every node needs this package, access to the weights, and the folder of ``out`` at the same path.

    Args:
        cores: cores per actor, which reads, decodes and computes in as many threads.
        gpus: GPUs per actor. A node that has both must be available when the run begins.

    Raises:
        SourceError, OutputError, UnknownVariantError, CheckpointError: as `bulk.classify_many`.
        EngineError: no such engine, or not on all nodes; no node has the cores and GPUs of an actor.
        ray.exceptions.RayError: the cluster failed.
    """
    request, passed = Request(source, variant, **options), Passed()
    request.check(out, workers=cores, resume=resume, overwrite=overwrite, progress=progress)
    ray = _import_ray()
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in has):  # Ray would wait forever
        raise EngineError(f"No node of the cluster has enough for one actor (CPUs: {cores}, GPUs: {gpus:g}).")
    needs = {"num_cpus": cores, "num_gpus": gpus}
    # On a node: the driver's own machine may have another engine, or no GPU.
    on_node = ray.remote(**needs)(lambda request: request.identity(request.open_engine()))
    identity: dict[str, Any] = ray.get(on_node.remote(request))
    constructor = {"request": request, "identity": identity, "out": Path(out).absolute(), "cores": cores}
    resources = ray.cluster_resources()
    most = int(resources["GPU"] / gpus if gpus else resources["CPU"] / cores)

    def process(numbered: Iterable[tuple[int, Shard]], parts: Parts, advance: Callable[[int], object]) -> int:
        computed = 0
        pending = ((n, shard) for n, shard in numbered if not parts.check_shard(n, shard.fingerprint))
        while some := list(itertools.islice(pending, ROUND)):
            rows = [{"number": number, "shard": pickle.dumps(shard)} for number, shard in some]
            data = ray.data.from_items(rows, override_num_blocks=len(rows))  # one block, so one task, per shard
            pool = ray.data.ActorPoolStrategy(size=max(1, min(most, len(rows))))
            for row in data.map(_Actor, fn_constructor_kwargs=constructor, compute=pool, **needs).iter_rows():
                computed += row["rows"]
                passed.update(json.loads(row["passed"]))
                advance(row["rows"])
        parts.refresh()
        return computed

    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    log = logging.getLogger("ray.data")  # it reports each round, and that its bars are off
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return request.run(out, identity, process, passed, resume=resume, overwrite=overwrite, progress=progress)
    finally:
        context.enable_progress_bars = shown
        log.setLevel(level)
