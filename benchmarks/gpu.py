"""A GPU in one call: parity, speed, tables, training, memory and tests, in at most eight minutes and without a network.

    python benchmarks/gpu.py [--networks NAME ...] [--batches N ...] [--photos DIR] [--val FILE] [--sections NAME ...]
    python benchmarks/gpu.py --rehearse     # the same code on a CPU, with small sizes: its figures say nothing

It prints one table. Weights are random, with BatchNorm statistics like those of trained networks. Only resnext_tiny is
trained: with --val (Tiny ImageNet's val.parquet) it shows what a precision costs in accuracy. Peers get normalised
images that are in the GPU's memory already; our engine gets uint8 pixels in the computer's memory, and returns its
answers there. "Of the floor" is the share of the rate that perfect kernels would have: a layer needs the time of its
multiply-adds at the card's measured matrix rate, or of moving its input, output and weights at the measured copy rate,
whichever is longer.

Every section is a process that is killed when its time is over; the next one may use what it left (a rehearsal is one
process). What is missing in the table is listed below it. The package need not be installed. If the machine lacks
packages (pyarrow, filelock and tqdm for tables, simplejpeg for faster decoding), bring wheels in a folder:
pip install --no-index --find-links FOLDER pyarrow filelock tqdm simplejpeg
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import gc
import io
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
COLUMNS = ("section", "what", "batch", "images/s", "of the floor", "more")
FULL = {
    "device": "cuda",
    "networks": ["resnext50_32x4d", "resnet50", "resnext101_32x8d", "resnext101_32x48d"],
    "batches": [64, 1, 256, 8],
    "size": 224,
    "seconds": 0.3,
    "square": 8192,
    "copied": 1 << 30,
    "images": 1000,
    "trained": {"resnext50_32x4d": 128, "resnext101_32x8d": 64},
    "large": "resnext101_32x48d",
    "compilers": [{"mode": "reduce-overhead"}, {"mode": "max-autotune"}],
}
REHEARSED = FULL | {
    "device": "cpu",
    "networks": ["resnet18", "resnext50_32x4d"],
    "batches": [2, 1],
    "size": 64,
    "seconds": 0.05,
    "square": 256,
    "copied": 1 << 20,
    "images": 12,
    "trained": {"resnet18": 4},
    "large": "resnext50_32x4d",
    "compilers": [{"backend": "eager"}],
}
Facts = dict[str, Any]
Task = tuple[str, int | None, Callable[[], Facts]]  # what, batch, and a function that returns the row's other cells


class Bench:
    """The sections. Each yields its rows as tasks; ``facts`` are the card's measured rates."""

    def __init__(self, scale: Facts, facts: Facts) -> None:
        import torch

        self.torch, self.facts, self.device = torch, facts, torch.device(scale["device"])
        self.scale = argparse.Namespace(**scale)
        self.cuda = self.device.type == "cuda"
        self.kind = {"bf16": torch.bfloat16, "fp16": torch.float16 if self.cuda else torch.bfloat16}  # for autocast

    def sync(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def rate(self, call: Callable[[], object], images: int, threads: int = 1) -> float:
        """Images per second, of calls one after the other in each thread; waits for the GPU at the end."""
        for _ in range(3):
            call()
        self.sync()
        start, done = time.perf_counter(), [0] * threads

        def repeat(thread: int) -> None:
            while not done[thread] or time.perf_counter() < start + self.scale.seconds:
                call()
                done[thread] += 1

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(repeat, range(threads)))
        self.sync()
        return sum(done) * images / (time.perf_counter() - start)

    # Networks

    def empty(self, name: str) -> Any:
        """A network of ours on the current device."""
        from resnext_hub.models.entrypoints import build
        from resnext_hub.models.manifest import default_manifest

        return build(default_manifest().architectures[name], 1000)

    @functools.lru_cache(maxsize=1)  # noqa: B019  # the process ends with the section
    def state(self, name: str) -> Any:
        """Random weights, made on the device."""
        torch = self.torch
        torch.manual_seed(0)
        with torch.inference_mode(False), self.device:
            network = self.empty(name)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.get_buffer("running_mean"), 0, 0.1)
                    torch.nn.init.uniform_(module.get_buffer("running_var"), 0.5, 1.5)
        return network.state_dict()

    def ours(self, name: str) -> Any:
        with self.torch.device("meta"):
            network = self.empty(name)
        network.load_state_dict({k: v.clone() for k, v in self.state(name).items()}, assign=True)
        return network

    def engine(self, name: str, precision: str, batch: int | None = None) -> Any:
        from resnext_hub.inference.engines.gpu import GpuEngine

        return GpuEngine(self.ours(name), self.preset, str(self.device), 1, precision=precision, batch=batch)

    def torchvision(self, name: str, channels_last: bool = False) -> Any:
        """torchvision's network; in its usual layout it shares the weights of `state`."""
        import torchvision
        from resnext_hub.models.manifest import default_manifest

        a = default_manifest().architectures[name]
        resnet = torchvision.models.resnet
        with self.torch.device("meta"):
            how: Facts = {"groups": a.groups, "width_per_group": a.width_per_group}
            network = resnet.ResNet(getattr(resnet, a.block), list(a.layers), **how)
        network.load_state_dict(self.state(name), assign=True)
        network = network.eval().requires_grad_(False)
        return copy.deepcopy(network).to(memory_format=self.torch.channels_last) if channels_last else network

    @property
    def preset(self) -> Any:
        from resnext_hub.models.manifest import default_manifest

        return default_manifest().resolve("resnext50_32x4d").preprocessing

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def pixels(self, batch: int) -> Any:
        import numpy as np

        return np.random.default_rng(0).integers(0, 256, (batch, self.scale.size, self.scale.size, 3), np.uint8)

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def images(self, batch: int, channels_last: bool = False) -> Any:
        from resnext_hub.processing_utils.preprocessing import normalise

        made = self.torch.from_numpy(normalise(self.pixels(batch), self.preset)).to(self.device)
        memory = self.torch.channels_last if channels_last else self.torch.contiguous_format
        return made.contiguous(memory_format=memory)

    def autocast(self, network: Any, images: Any, precision: str = "fp16") -> Any:
        with self.torch.inference_mode(), self.torch.autocast(self.device.type, self.kind[precision]):
            return network(images)

    def floor(self, name: str, batch: int, precision: str) -> float:
        """The seconds of perfect kernels for a batch; 0 if the card's rates are not known."""
        torch, seconds = self.torch, 0.0
        width = 4 if precision == "fp32" else 2

        def add(module: Any, inputs: Any, output: Any) -> None:
            nonlocal seconds
            products = output.numel() * module.weight.numel() / module.weight.shape[0]
            moved = width * (inputs[0].numel() + output.numel() + module.weight.numel())
            if self.facts:
                seconds += max(2 * products / self.facts[precision], moved / self.facts["copy"])

        with torch.device("meta"):
            network = self.empty(name).eval()
            for module in network.modules():
                if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                    module.register_forward_hook(add)
            network(torch.empty(batch, 3, self.scale.size, self.scale.size))
        return seconds

    def of_floor(self, rate: float, name: str, batch: int, precision: str, more: str = "") -> Facts:
        return {"images/s": rate, "of the floor": rate * self.floor(name, batch, precision) / batch, "more": more}

    # Sections

    def card(self) -> Iterator[Task]:
        import torchvision

        torch, n = self.torch, self.scale.square

        def about() -> Facts:
            name = torch.cuda.get_device_name() if self.cuda else "CPU: a rehearsal, which measures nothing"
            libraries = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
            return {"more": f"{name}; {libraries}, {os.cpu_count()} processor cores"}

        def copied() -> Facts:
            one, two = (torch.zeros(self.scale.copied, dtype=torch.uint8, device=self.device) for _ in range(2))
            rate = self.rate(lambda: two.copy_(one), 2 * self.scale.copied)
            return {"more": f"{rate / 1e9:.0f} GB/s read and written", "facts": {"copy": rate}}

        def multiplied(precision: str) -> Facts:
            kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
            one, two = (torch.randn(n, n, device=self.device, dtype=kind) for _ in range(2))
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            rate = self.rate(lambda: one @ two, 2 * n**3)
            return {"more": f"{rate / 1e12:.1f} TFLOP/s", "facts": {precision: rate}}

        yield "card", None, about
        yield "copy on the card", None, copied
        for precision in ("fp16", "bf16", "tf32", "fp32"):
            yield f"matrix product, {precision}", None, functools.partial(multiplied, precision)

    def parity(self) -> Iterator[Task]:
        import numpy as np

        torch, count = self.torch, 8

        @functools.lru_cache(maxsize=1)
        def expected(name: str) -> Any:
            network = self.torchvision(name).cpu()
            with torch.inference_mode():
                return network(self.images(count).cpu()).numpy()

        def compared(got: Any, name: str) -> Facts:
            got = got.float().cpu().numpy() if isinstance(got, torch.Tensor) else got
            off = float(np.abs(got - expected(name)).max() / np.ptp(expected(name)))
            same = int((got.argmax(1) == expected(name).argmax(1)).sum())
            return {"more": f"largest difference {off:.1e} of the range, same best class {same} of {count}"}

        def eager(name: str, tf32: bool) -> Facts:
            torch.backends.cudnn.allow_tf32 = tf32
            network = self.torchvision(name)
            with torch.inference_mode():
                return compared(network(self.images(count)), name)

        for name in self.scale.networks[:3]:
            for tf32 in (False, True):
                label = "its default" if tf32 else "off"
                yield f"{name}: torchvision, fp32, TF32 {label}", count, functools.partial(eager, name, tf32)
            yield (
                f"{name}: torchvision, AMP",
                count,
                functools.partial(
                    lambda name: compared(self.autocast(self.torchvision(name), self.images(count)), name), name
                ),
            )
            for precision in ("fp32", "fp16", "bf16"):
                yield (
                    f"{name}: ours, {precision}",
                    count,
                    functools.partial(
                        lambda name, precision: compared(self.engine(name, precision)(self.pixels(count))[0], name),
                        *(name, precision),
                    ),
                )
        if self.scale.val:
            for precision in ("fp16", "bf16"):
                yield f"resnext_tiny: {precision} against fp32", None, functools.partial(self._accuracy, precision)

    @functools.cached_property
    def _val(self) -> tuple[Any, Any]:
        """The pixels and labels of Tiny ImageNet's validation images."""
        import numpy as np
        from resnext_hub.data.splits import open_images
        from resnext_hub.models.manifest import default_manifest
        from resnext_hub.processing_utils.labels import read_labels
        from resnext_hub.processing_utils.preprocessing import load_pixels

        tiny = default_manifest().resolve("resnext_tiny")
        images = open_images(self.scale.val, [label.synset for label in read_labels(tiny.labels)])
        count = len(images) if self.cuda else self.scale.images
        load = functools.partial(load_pixels, preset=tiny.preprocessing, grade="close")
        with ThreadPoolExecutor() as pool:
            pixels = np.stack([*pool.map(lambda i: load(images.read(i)), range(count))])
        return pixels, images.labels[:count]

    def _accuracy(self, precision: str) -> Facts:
        """The paired loss of accuracy of a precision, with its 95 % interval."""
        import numpy as np
        from resnext_hub.inference.engines.gpu import GpuEngine
        from resnext_hub.models.entrypoints import load
        from resnext_hub.models.manifest import default_manifest

        tiny = default_manifest().resolve("resnext_tiny")
        pixels, labels = self._val
        best = [
            GpuEngine(load(tiny), tiny.preprocessing, str(self.device), precision=p)(pixels)[0].argmax(1)
            for p in ("fp32", precision)
        ]
        right = [100.0 * (found == labels) for found in best]
        lost = right[0] - right[1]
        half = 1.96 * float(np.std(lost)) / math.sqrt(len(lost))
        more = f"top-1 {right[0].mean():.2f} % and {right[1].mean():.2f} %, loss {lost.mean():.2f} points "
        more += f"({lost.mean() - half:.2f} to {lost.mean() + half:.2f}), same best class "
        return {"more": more + f"{100 * (best[0] == best[1]).mean():.2f} % of {len(labels)}"}

    def speed(self) -> Iterator[Task]:
        def eager(name: str, batch: int, channels_last: bool) -> Facts:
            network, images = self.torchvision(name, channels_last), self.images(batch, channels_last)
            return self.of_floor(self.rate(lambda: self.autocast(network, images), batch), name, batch, "fp16")

        def timm(name: str, batch: int) -> Facts:
            import timm  # pyright: ignore[reportMissingImports]  # the extra peers

            with self.device:  # random weights are made faster there
                network = timm.create_model(name).eval().to(memory_format=self.torch.channels_last)
            images = self.images(batch, True)
            return self.of_floor(self.rate(lambda: self.autocast(network, images), batch), name, batch, "fp16")

        def ours(name: str, batch: int, precision: str) -> Facts:
            engine, pixels = self.engine(name, precision, batch), self.pixels(batch)
            threads = 1 if batch == 1 or not engine.concurrent else 3
            rate = self.rate(lambda: engine(pixels), batch, threads)
            return self.of_floor(rate, name, batch, precision, f"{threads} threads" if threads > 1 else "")

        for name in self.scale.networks:
            for batch in self.scale.batches:
                for precision in ("fp16", "bf16", "fp32")[: 3 if batch == self.scale.batches[0] else 2]:
                    yield f"{name}: ours, {precision}", batch, functools.partial(ours, name, batch, precision)
                yield f"{name}: torchvision, AMP", batch, functools.partial(eager, name, batch, False)
                yield f"{name}: torchvision, AMP, channels last", batch, functools.partial(eager, name, batch, True)
                yield f"{name}: timm, AMP, channels last", batch, functools.partial(timm, name, batch)

    def compile(self) -> Iterator[Task]:
        torch = self.torch

        def compiled(name: str, batch: int, own: bool, how: Facts) -> Facts:
            torch._dynamo.reset()
            start, images = time.perf_counter(), self.images(batch, True)
            network = torch.compile(self.engine(name, "fp16").network if own else self.torchvision(name, True), **how)
            images = images.half() if own else images

            def call() -> Any:
                with torch.inference_mode(), torch.autocast(self.device.type, self.kind["fp16"], enabled=not own):
                    return network(images)

            call()
            self.sync()
            took = f"compiled in {time.perf_counter() - start:.0f} s"
            return self.of_floor(self.rate(call, batch), name, batch, "fp16", took)

        for how in self.scale.compilers:
            for batch in self.scale.batches:
                for name in self.scale.networks:
                    for own, way in ((False, "torchvision, AMP, channels last"), (True, "our fp16, without transfers")):
                        label = f"{name}: torch.compile ({next(iter(how.values()))}) of {way}"
                        yield label, batch, functools.partial(compiled, name, batch, own, how)

    def tables(self) -> Iterator[Task]:
        from resnext_hub.data.file_names import Passed
        from resnext_hub.inference.bulk import Request
        from resnext_hub.inference.engines.base import available_cores
        from resnext_hub.inference.resumable import process_shards, run
        from resnext_hub.processing_utils.preprocessing import load_pixels

        torch, cores, name = self.torch, available_cores(), self.scale.networks[0]
        batch = min(64, self.scale.images)
        folder = Path(tempfile.mkdtemp(dir=os.environ["TMPDIR"]))
        contents = _photos(self.scale.photos)
        files = [folder / f"{i:05}.jpg" for i in range(self.scale.images)]
        for i, file in enumerate(files):
            file.write_bytes(contents[i % len(contents)])
        rates: dict[str, float] = {}

        def timed(call: Callable[[], object], what: str) -> Facts:
            self.sync()
            start = time.perf_counter()
            call()
            self.sync()
            rates[what] = len(files) / (time.perf_counter() - start)
            return {"images/s": rates[what]}

        def table(precision: str) -> Facts:
            request = Request(str(folder / "*.jpg"), "resnext50_32x4d", batch=batch)
            engine = self.engine(name, precision, batch)
            for _ in range(3):
                engine(self.pixels(batch))
            process = functools.partial(
                process_shards, make_rows=request.predictor(engine), batch=batch, workers=cores, commit_seconds=math.inf
            )

            def make() -> None:
                done = run(folder / "out.parquet", {}, request.shards(Passed()), process, overwrite=True)
                assert (done.images, done.errors) == (len(files), 0), done

            return timed(make, precision) | {"more": f"{cores} threads"}

        def decoded(grade: str) -> Facts:
            def decode(file: Path) -> None:
                load_pixels(file.read_bytes(), self.preset, grade)

            with ThreadPoolExecutor(cores) as pool:
                return timed(lambda: list(pool.map(decode, files)), grade) | {"more": f"{cores} threads"}

        def on_gpu() -> Facts:
            import numpy as np

            assert self.device_decoder(contents[:2]).shape[0] == 2  # warm
            parts = [[f.read_bytes() for f in files[i : i + batch]] for i in range(0, len(files), batch)]
            found = timed(lambda: [self.device_decoder(part) for part in parts], "nvJPEG")
            theirs = self.device_decoder(contents[:20]).cpu().numpy().astype(int)
            off = np.abs(theirs - np.stack([load_pixels(c, self.preset, "reference") for c in contents[:20]]))
            best = max(rates.get("close", 0.0), rates.get("fast", 0.0))
            more = (
                f"{off.max()} of 255 off, {off.mean():.3f} on average; {rates['nvJPEG'] / max(best, 1e-9):.2f} times "
            )
            return found | {"more": f"{more}the best of our threads"}

        def loader() -> Facts:
            from torchvision import transforms
            from torchvision.datasets.folder import default_loader

            network = self.torchvision(name, True)
            steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
            steps.append(transforms.Normalize(self.preset.mean, self.preset.std))
            change = transforms.Compose(steps)
            data: Any = _Read(files, lambda file: change(default_loader(str(file))))
            how: Facts = {"num_workers": cores, "multiprocessing_context": "fork", "pin_memory": self.cuda}
            batches = torch.utils.data.DataLoader(data, batch, **how)

            def classify() -> None:
                for images in batches:
                    images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
                    self.autocast(network, images).softmax(1).topk(5)

            return timed(classify, "loader") | {"more": f"{cores} processes"}

        yield f"{name}: JPEG to table, fp16", batch, functools.partial(table, "fp16" if self.cuda else "bf16")
        for grade in ("close", "fast"):
            yield f"decoding alone, {grade}", None, functools.partial(decoded, grade)
        yield "decoding alone, nvJPEG, resized on the GPU", batch, on_gpu
        yield f"{name}: JPEG to table, fp32", batch, functools.partial(table, "fp32")
        yield f"{name}: DataLoader, torchvision, AMP, channels last", batch, loader

    def device_decoder(self, contents: list[bytes]) -> Any:
        """JPEG files -> uint8 pixels (N, 3, crop, crop) as ours (N, crop, crop, 3), all on the device."""
        import numpy as np
        import torchvision.transforms.v2.functional as F
        from torchvision.io import ImageReadMode, decode_jpeg

        torch, preset = self.torch, self.preset
        raw = [torch.from_numpy(np.frombuffer(content, np.uint8).copy()) for content in contents]
        images = decode_jpeg(raw, ImageReadMode.RGB, device=self.device)
        images = [F.resize(image, [preset.resize_size], antialias=True) for image in images]
        return torch.stack([F.center_crop(image, [preset.crop_size] * 2) for image in images]).permute(0, 2, 3, 1)

    def training(self) -> Iterator[Task]:
        for name, batch in self.scale.trained.items():
            for amp in ("fp16", "bf16"):
                yield f"{name}: ours, {amp}", batch, functools.partial(self._train_ours, name, batch, amp, False)
            yield f"{name}: torchvision's reference loop, --amp", batch, functools.partial(self._train, name, batch)
            compiled = functools.partial(self._train_ours, name, batch, "bf16", self.cuda)
            yield f"{name}: ours, bf16, compile", batch, compiled

    def _trained(self, name: str, batch: int, step: Callable[[], object]) -> Facts:
        """A row of training: forward and backward have three times the floor of forward alone."""
        if self.cuda:
            self.torch.cuda.reset_peak_memory_stats()
        rate = self.rate(step, batch)
        more = f"{1e3 * batch / rate:.0f} ms per step"
        more += f", {self.torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if self.cuda else ""
        return {"images/s": rate, "of the floor": 3 * rate * self.floor(name, batch, "fp16") / batch, "more": more}

    def _train_ours(self, name: str, batch: int, amp: str, compiled: bool) -> Facts:
        from resnext_hub.processes import Processes
        from resnext_hub.training.batches import Batch
        from resnext_hub.training.optimisation import Optimisation
        from resnext_hub.training.recipe import load_recipe

        torch = self.torch
        changes = {"architecture": name, "epochs": 9, "batch_size": batch, "optimizer": "sgd", "lr": 0.01, "amp": amp}
        changes |= {"freeze_norm": False, "layer_decay": 1.0, "compile": compiled}
        recipe = load_recipe("finetune", changes).resolved(None, None)
        recipe = recipe if self.cuda else recipe.on(self.device)
        network = self.ours(name)
        taker = Optimisation(network, recipe, Processes.here(), None, 1000)
        taker.training_mode()
        data = Batch(self.images(batch), torch.randint(1000, (batch,), device=self.device))
        pending, count = [torch.zeros(())], 0

        def step() -> None:  # as Loop: the loss of the step before is read, so that the GPU is not waited for
            nonlocal count
            loss = taker.take(data, count)
            count += 1
            pending.append(loss)
            assert math.isfinite(pending.pop(0).item())

        return self._trained(name, batch, step)

    def _train(self, name: str, batch: int) -> Facts:
        """references/classification/train.py with --amp: train_one_epoch, on images that are on the device."""
        torch = self.torch
        model = copy.deepcopy(self.torchvision(name)).train().requires_grad_(True)
        criterion = torch.nn.CrossEntropyLoss()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        scaler = torch.amp.GradScaler(self.device.type) if self.cuda else None
        image, target = self.images(batch), torch.randint(1000, (batch,), device=self.device)

        def step() -> None:
            with torch.amp.autocast(self.device.type, enabled=scaler is not None):
                loss = criterion(output := model(image), target)
            optimizer.zero_grad()
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            with torch.inference_mode():  # utils.accuracy and the meters
                correct = output.topk(5, 1, True, True)[1].t().eq(target[None])
                for value in (loss, *(correct[:k].flatten().sum(dtype=torch.float32) for k in (1, 5))):
                    value.item()

        return self._trained(name, batch, step)

    def memory(self) -> Iterator[Task]:
        name, torch = self.scale.large, self.torch

        def used(precision: str) -> Facts:
            self.state.cache_clear()
            gc.collect()
            if not self.cuda:
                engine = self.engine(name, precision)
                return {"more": f"{sum(p.nbytes for p in engine.network.parameters()) / 1e9:.2f} GB of weights"}
            torch.cuda.empty_cache()
            engine = self.engine(name, precision)
            self.state.cache_clear()
            gc.collect()
            torch.cuda.empty_cache()
            more = [f"{torch.cuda.memory_allocated() / 1e9:.2f} GB of weights"]
            for batch in (1, 64):
                torch.cuda.reset_peak_memory_stats()
                for _ in range(3):
                    engine(self.pixels(batch))
                more.append(f"{torch.cuda.max_memory_reserved() / 1e9:.2f} GB at batch {batch}")
            return {"more": ", ".join(more)}

        for precision in ("fp16", "fp32"):
            yield f"{name}: ours, {precision}", None, functools.partial(used, precision)

    def tests(self) -> Iterator[Task]:
        def run() -> Facts:
            where = [str(ROOT / "tests" / name) for name in ("inference/test_gpu.py", "training/test_training.py")]
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-n", "0", "-p", "no:cacheprovider", *where]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                print(done.stdout[-3000:], done.stderr[-1000:], file=sys.stderr)
            return {"more": (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")}

        yield "pytest -m gpu", None, run


#: The sections, and the seconds that each may take. The first one loads PyTorch from a cold disk.
SECTIONS = {"card": 60, "parity": 50, "tests": 40, "speed": 160, "tables": 45, "training": 45, "memory": 25}
SECTIONS["compile"] = 470 - sum(SECTIONS.values())


class _Read:
    """A data set for a DataLoader whose processes are forked."""

    def __init__(self, files: list[Path], read: Callable[[Path], Any]) -> None:
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Any:
        return self.read(self.files[i])


def _photos(folder: str) -> list[bytes]:
    """The .jpg files of a folder; without any, smooth images of 500 x 375."""
    import numpy as np
    from PIL import Image

    found = [file.read_bytes() for file in sorted(Path(folder).glob("*.jpg"))]
    for seed in range(0 if found else 20):
        coarse = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((500, 375)).save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def print_rows(sections: list[str], scale: Facts, facts: Facts) -> None:
    """What a process does: print a line of JSON for each section's plan, and for each row."""
    import torch

    for section in sections:
        bench = Bench(scale, facts)
        try:
            tasks = list(getattr(bench, section)())
        except Exception as error:  # a package that a whole section needs
            tasks = [(section, None, functools.partial(_raise, error))]
        print(json.dumps({"section": section, "plan": [[what, batch] for what, batch, _ in tasks]}), flush=True)
        for what, batch, task in tasks:
            row: Facts
            try:
                row = task()
            except Exception as error:  # the others may work
                row = {"more": f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"}
            facts |= row.get("facts", {})
            print(json.dumps({"section": section, "what": what, "batch": batch} | row), flush=True)
            gc.collect()
            if bench.cuda:
                with contextlib.suppress(RuntimeError):  # after a fault, every call fails
                    torch.cuda.empty_cache()


def _raise(error: Exception) -> Facts:
    raise error


def rows_of(
    sections: list[str], scale: Facts, facts: Facts, seconds: float, environment: dict[str, str]
) -> Iterator[Facts]:
    """The plans and rows of sections; their process, and those that it started, are killed after so many seconds."""
    command = [sys.executable, __file__, "--print-rows", *map(json.dumps, (sections, scale, facts))]
    how: Facts = {"stdout": subprocess.PIPE, "text": True, "env": environment, "start_new_session": True}
    with subprocess.Popen(command, **how) as process:
        timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout or ():
                if line.startswith("{"):
                    yield json.loads(line)
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:  # the caller has seen enough
                os.killpg(process.pid, signal.SIGKILL)


def shown(row: Facts) -> str:
    rate, share = row.get("images/s"), row.get("of the floor")
    cells = [
        row["section"],
        row["what"],
        row["batch"] or "",
        f"{rate:.1f}" if rate else "",
        f"{share:.0%}" if share else "",
    ]
    return f"| {' | '.join(map(str, [*cells, row.get('more', '')]))} |"


def verdicts(rows: list[Facts]) -> Iterator[str]:
    """Our fastest precision beside the fastest peer, for each network and batch."""
    found: dict[tuple[str, int], dict[bool, Facts]] = {}
    for row in rows:
        if row.get("images/s") and "without transfers" not in row["what"]:
            network, _, way = row["what"].partition(": ")
            best = found.setdefault((network, row["batch"]), {})
            best[way.startswith("ours")] = max(
                row, best.get(way.startswith("ours"), row), key=lambda row: row["images/s"]
            )
    for (network, batch), best in found.items():
        if len(best) == 2:
            ratio = best[True]["images/s"] / best[False]["images/s"]
            ways = [best[own]["what"].partition(": ")[2] for own in (True, False)]
            yield f"{network}, batch {batch}: {ways[0]} has {ratio:.2f} times the rate of {ways[1]}"


def main() -> int:
    if sys.argv[1:2] == ["--print-rows"]:
        sections, scale, facts = map(json.loads, sys.argv[2:])
        print_rows(sections, scale, facts)
        return 0
    parser = argparse.ArgumentParser(description="Measure and test everything that runs on a GPU, in one call.")
    parser.add_argument("--rehearse", action="store_true", help="run it on the CPU with small sizes; measures nothing")
    parser.add_argument("--networks", nargs="+", help="architectures to measure, the most important first")
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes, the most important first")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    photos = "folder of .jpg files (default: %(default)s; without any, made-up images)"
    parser.add_argument("--photos", default=str(DATA / "photos"), help=photos)
    val = "labelled images of Tiny ImageNet, for the accuracy of resnext_tiny (default: %(default)s, if it exists)"
    parser.add_argument("--val", default=str(DATA / "tiny-imagenet-200" / "val.parquet"), help=val)
    arguments = parser.parse_args()
    start = time.monotonic()
    scale = REHEARSED if arguments.rehearse else FULL
    scale = scale | {name: value for name in ("networks", "batches") if (value := getattr(arguments, name))}
    scale |= {"photos": arguments.photos, "val": arguments.val if Path(arguments.val).exists() else ""}
    facts: Facts = {}
    missing: list[str] = []
    measured: list[Facts] = []
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|--:|--:|--:|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "resnext_hub").symlink_to(ROOT)  # so that the package need not be installed
        environment = os.environ | {"PYTHONPATH": folder, "TMPDIR": folder, "TORCH_HOME": folder}
        environment |= {"CUDA_VISIBLE_DEVICES": ""} if arguments.rehearse else {}
        end, wanted = 0.0, [name for name in SECTIONS if name in arguments.sections]
        for group in [wanted] if arguments.rehearse else [[name] for name in wanted]:
            end += sum(SECTIONS[name] for name in group)
            left: dict[str, list[list[Any]]] = {name: [["all of it", None]] for name in group}
            for row in rows_of(group, scale, facts, end - (time.monotonic() - start), environment):
                if "plan" in row:
                    left[row["section"]] = row["plan"]
                    continue
                left[row["section"]].remove([row["what"], row["batch"]])
                facts |= row.get("facts", {})
                measured += [row] if row["section"] in ("speed", "compile", "training") else []
                print(shown(row), flush=True)
                if row["what"] == "card" and "failed" in row["more"]:
                    print("\nNo NVIDIA GPU was found. To run this on the CPU, pass --rehearse.", file=sys.stderr)
                    return 2
            for name, rows in left.items():
                missing += [f"{name}: {what}{f', batch {batch}' if batch else ''}" for what, batch in rows]
    print(f"\n{time.monotonic() - start:.0f} s in all. Left out, since the section's time was over, or it was killed:")
    print("\n".join(f"- {entry}" for entry in missing) or "- nothing")
    print("\nGoal: ahead of every peer in each row, and 80 % of the floor from batch 64 on.")
    print("\n".join(f"- {line}" for line in verdicts(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
