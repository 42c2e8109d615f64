"""Many images -> one table, on a Ray cluster: `bulk`'s job, its shards shared out over stateful actors by Ray Data.

An actor has one engine and a group of cores, or one GPU. It does one shard at a time and commits its parts itself, into
the folder ``OUT.parts``, which every node must see (a network file system). So what is lost with a node is its shard
under way, and Ray has another actor do that again; what a shard's parts hold does not depend on who does it, and the
table is the one that a single machine makes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

from ..data.names import Passed
from ..data.shards import Shard
from ..errors import EngineError, OutputError
from ..models.manifest import find_checkpoint
from ..packages import needed
from ..telemetry import import_quietly
from .bulk import Done, Job, Options, check, commit_shards, describe, run, work_of
from .engines import open_engine
from .tables import Parts

__all__ = ["classify_on_ray"]

# Shards that the driver hands to Ray at a time (a million images): their names lie in its memory.
ROUND = 256


def _import_ray() -> Any:
    with needed("A cluster", "cluster"):
        ray = import_quietly("ray")
        import_quietly("ray.data")
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    return ray


class _Actor:
    """Does shards, with an engine of its own. Rows in and out are small: images and results do not pass through Ray."""

    def __init__(self, job: Job, out: Path, engine: str, cores: int) -> None:
        opened = open_engine(find_checkpoint(job.checkpoint), engine, threads=1)
        if (opened.name, opened.precision) != (job.engine, job.precision):
            raise OutputError(
                f"The job's engine is {job.engine} in {job.precision}, but this node has {opened.name} in "
                f"{opened.precision}: pass engine=NAME of one that all nodes have."
            )
        self._work, self._batch, self._cores = work_of(job, opened), job.batch, cores
        self._parts = Parts(out, dataclasses.asdict(job))
        self._parts.check_job()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one shard: the one whose pickle is in ``row``."""
        number, shard = int(row["number"]), pickle.loads(row["shard"])  # noqa: S301  # the driver's own
        self._parts.refresh(number)  # a lost node may have come far with it
        # By numbers of rows alone, not by the clock: should a node that was given up still write, it writes the same.
        passed = getattr(shard, "passed", Passed())
        passed.clear()  # the driver's
        rows = commit_shards([(number, shard)], self._parts, self._work, batch=self._batch, workers=self._cores)
        return {"number": number, "rows": rows, "passed": json.dumps(passed)}


def _describe(source: str | Sequence[str], variant: str, options: Options) -> Job:
    return describe(source, variant, **options)[0]


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
) -> Done:
    """`bulk.classify_many` on the Ray cluster that this process is connected to (else `ray.init` finds or starts one).

    Every node needs this package, the weights in reach, and the folder of ``out``, at the same path.

    Args:
        cores: of an actor; it reads, decodes and computes in so many threads.
        gpus: of an actor; 1 for an actor a GPU. A node that has both must be there when the run begins.

    Raises:
        SourceError, OutputError, UnknownVariantError, CheckpointError: as `bulk.classify_many`.
        EngineError: no such engine, or not on all nodes; no node has the cores and GPUs of an actor.
        ray.exceptions.RayError: the cluster cannot do it.
    """
    check(source, out, variant, workers=cores, resume=resume, overwrite=overwrite, progress=progress, **options)
    ray = _import_ray()
    has = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cores and node.get("GPU", 0) >= gpus for node in has):  # Ray would wait for ever
        raise EngineError(f"No node of the cluster has enough for one actor (CPUs: {cores}, GPUs: {gpus:g}).")
    needs = {"num_cpus": cores, "num_gpus": gpus}
    # On a node: the driver's own machine may have another engine, or no GPU.
    job: Job = ray.get(ray.remote(**needs)(_describe).remote(source, variant, options))
    constructor = {"job": job, "out": Path(out).absolute(), "engine": options.get("engine", "auto"), "cores": cores}
    resources = ray.cluster_resources()
    most = int(resources["GPU"] / gpus if gpus else resources["CPU"] / cores)

    def do(numbered: Iterator[tuple[int, Shard]], parts: Parts, advance: Callable[[int], object]) -> int:
        computed = 0
        todo = ((n, shard) for n, shard in numbered if not parts.check_shard(n, shard.fingerprint))
        while some := list(itertools.islice(todo, ROUND)):
            rows = [{"number": number, "shard": pickle.dumps(shard)} for number, shard in some]
            data = ray.data.from_items(rows, override_num_blocks=len(rows))  # a block, so a task, a shard
            pool = ray.data.ActorPoolStrategy(size=max(1, min(most, len(rows))))
            data = data.map(_Actor, fn_constructor_kwargs=constructor, compute=pool, **needs)
            for row in data.iter_rows():
                computed += row["rows"]
                getattr(some[0][1], "passed", Passed()).update(json.loads(row["passed"]))  # all shards share it
                advance(row["rows"])
        parts.refresh()
        return computed

    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        return run(job, out, do, resume=resume, overwrite=overwrite, progress=progress)
    finally:
        context.enable_progress_bars = shown
