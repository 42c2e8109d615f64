"""A training run in steps: open the data, build the network, train it, and make its folder a variant."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import datetime
import functools
import hashlib
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.held_out import write_held_out
from ..data.outputs import check_folder
from ..data.splits import LabelledImages, hold_out, train_and_val
from ..errors import CheckpointError, MissingPackageError, RecipeError, SourceError
from ..models.checkpoints import read_state_dict
from ..models.entrypoints import build, load
from ..models.manifest import Checkpoint, default_manifest, find_checkpoint
from ..packages import install, missing
from ..processes import Processes
from ..processing_utils.labels import Label, labels_table, read_labels
from ..run_identity import versions
from . import checkpoint
from .batches import FromFiles, InMemory, TrainingSet, validation_batches
from .calibrate import Calibration, calibration, fold_temperature, scores_of
from .display import Display, watched
from .grow import grow_into
from .head import Features, Head, features_of, fit_head
from .loggers import LOGGERS
from .loop import BEST, Loop, accuracy, best_row, figure_of, unreadable
from .pixels import PixelTable
from .publish import publish_run
from .recipe import Recipe, load_recipe
from .teacher_scores import read_scores

FEW = 20  # images per class: of fewer, a held-out tenth would say little and be missed in training
UNEVEN = 5  # times as many images in the largest class as in the smallest
MOST_FEATURES = 20_000  # images that a head is fitted on
LEAST_VALIDATION = 50  # images: fewer show neither that fine-tuning helps nor how sure the network should be
NOISE = 0.05  # share of labels that seem to be wrong, from which on a line says so


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run, checked when they are made.

    Attributes:
        data: one or several sources of labelled images (docs/data.md).
        out: the folder of the run.
        variant: the weights to start from: a variant's name, or the folder of another run.
        recipe: name of a recipe, or a TOML file; None: "finetune", which needs a variant.
        changes: values of the recipe to change, such as ``{"epochs": 3}``.
        val: the validation images; None: the split val of ``data``, or a tenth of each class.
        label_table: a table of classes by image number, written by `curation`; needs ``val``.
        classes: a file with the order and names of the classes, such as a run's labels.tsv.
        reading: column, label_column, label_separator, split, private and anonymous; see `data.labels.list_images`.
        initial_weights: a state_dict of the recipe's network, or of a smaller one (`grow`), to start from.
        teacher_scores: a folder of scores to distil from (the module `teacher_scores`).
        micro_batch: images per forward pass, to save memory.
        minutes: train for as many epochs of the recipe as fit into this time.
        workers: processes that read images; None: the number of cores, at most 8.
        threads: CPU threads of PyTorch; None: PyTorch's default.
        checkpoint_seconds: at most this much work is lost to SIGKILL.
        loggers: names in `loggers.LOGGERS`; None: TensorBoard, if it is installed.

    Raises:
        ValueError: an option makes no sense.
        MissingPackageError: a logger is not installed.
    """

    data: tuple[str, ...]
    out: Path
    variant: str | Path | None = None
    recipe: str | Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    val: str | None = None
    label_table: str | None = None
    classes: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: Path | None = None
    teacher_scores: Path | None = None
    micro_batch: int | None = None
    minutes: float | None = None
    workers: int | None = None
    threads: int | None = None
    checkpoint_seconds: float = 120.0
    loggers: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.recipe is None and self.variant is None:
            raise ValueError("Pass a variant to start from its weights, or a recipe to train from scratch.")
        if self.variant is not None and self.initial_weights is not None:
            raise ValueError("Pass either a variant or initial_weights: a run starts from one of them.")
        for name in self.loggers or ():
            if name not in LOGGERS:
                raise ValueError(f"Unknown logger {name!r}; choose from {', '.join(LOGGERS)}.")
            if missing([name]):
                raise MissingPackageError(f"The logger {name} is not installed: {install(name)}", name=name)
        least_values = {"micro_batch": 1, "minutes": 0, "workers": 0, "threads": 1, "checkpoint_seconds": 0}
        for name, least in least_values.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be {least} or more, not {value}.")


@dataclass(frozen=True)
class FinishedRun:
    """A finished run. Its folder is a variant for `classifier`, `evaluate` and `export`.

    Attributes:
        weights: the published file, named by its hash.
        labels: in the order of the logits.
        curve: a row for each epoch, as in log.csv.
        top1: accuracy of the published weights on the validation images, 0..1; without such images that of the fitted
            head by cross-validation, or None.
        mean_ap: the same for images with several classes: the mean of the classes' average precisions.
    """

    folder: Path
    weights: Path
    labels: tuple[Label, ...]
    curve: tuple[dict[str, float], ...]

    @property
    def top1(self) -> float | None:
        return _known(self.curve[-1]["val_top1"])

    @property
    def mean_ap(self) -> float | None:
        return _known(self.curve[-1]["val_map"])


class TrainingRun:
    """A training run in four steps: `open_data`, `start_network`, `train`, `publish`. `run` takes them all.

    Args:
        say: called with each line of progress; in the first process only.

    Raises:
        RecipeError, UnknownVariantError, ManifestError: the recipe or the variant cannot be used.
    """

    train_images: LabelledImages
    val_images: LabelledImages
    labels: tuple[Label, ...]
    network: nn.Module
    head: Head | None = None  # fitted on the features
    prior: Tensor | None = None  # logarithms of the frequencies of the classes, if the recipe balances them
    multi_label = False  # images may show several classes
    figure = "top-1"  # the accuracy that decides, or "mAP"
    resumed_complete = False  # the run in the folder was finished already

    def __init__(self, options: RunOptions, say: Callable[[str], object] = lambda line: None) -> None:
        self.options, self.processes = options, Processes.here()
        self.say = say if self.processes.first else lambda line: None
        self.base = None if options.variant is None else find_checkpoint(str(options.variant))
        recipe = _recipe(options, self.base)
        self.recipe = recipe.on(self.processes.device)
        if self.recipe != recipe:
            self.say(f"amp is none instead of {recipe.amp}: this {self.processes.device.type} would only emulate it.")
        self.begun = time.monotonic()
        self.workers = min(os.cpu_count() or 1, 8) if options.workers is None else options.workers
        #: Everything besides the recipe that determines the result; the steps add to it.
        self.identity: dict[str, Any] = {"versions": versions("torch", "torchvision", "numpy", "pillow")}

    def run(self) -> FinishedRun:
        """Take all steps. A folder with a run of the same identity is resumed.

        Raises:
            SourceError, ImageError, FetchError: the data cannot be used.
            CheckpointError: the weights to start from, or those in the folder, cannot be used.
            OutputError: the folder has another run or other files, or cannot be written.
            DivergedError, StoppedError: see `Loop.run`.
        """
        if self.options.threads is not None:
            torch.set_num_threads(self.options.threads)
        if self.processes.first:
            check_folder(self.options.out, ("run.json", "last.pt", "previous.pt"), "choose another folder")
        # Long, since the others wait for a process with a slow store.
        with self.processes.joined(datetime.timedelta(hours=2), gpu=True):
            self.open_data()
            self.start_network()
            with self.claimed():
                self.fit_head()
                return self.publish(*self.train())

    def open_data(self) -> None:
        """List the training and validation images, and fit the batch to their number.

        Raises:
            SourceError: they cannot be used; there are fewer than two classes.
        """
        options, recipe = self.options, self.recipe
        folds = recipe.fit_head and options.teacher_scores is None  # `score` always holds out a tenth
        train, self.val_images, self.labels = train_and_val(
            options.data,
            options.val,
            label_table=options.label_table,
            classes=options.classes,
            seed=recipe.seed,
            few=FEW if folds else 0,
            least=10 * LEAST_VALIDATION if folds else 0,
            say=self.say,
            **options.reading,
        )
        labels_table(self.labels)  # checks the class names now and not at the end
        if len(self.labels) < 2:
            raise SourceError(
                f"{', '.join(options.data)} has {len(self.labels)} class, {''.join(x.name for x in self.labels)}: "
                "training needs at least two."
            )
        self.order = np.arange(len(train))
        if recipe.held_out:  # the last images
            self.order = np.argsort(hold_out(train, recipe.seed, count=recipe.held_out), kind="stable")
            train = train.subset(self.order)
        self.train_images = train
        self.multi_label = train.labels.dtype == bool
        self.figure = "mAP" if self.multi_label else "top-1"
        if self.multi_label:
            several = train.labels.sum(1)
            self.say(
                f"Images have several classes, {several.mean():.1f} on average: each class has a probability of its own"
            )
            for key in ("balance", "held_out", "distillation_weight"):
                if getattr(recipe, key):
                    raise SourceError(f"{key} is for images of one class; these have several: leave it out.")
        world, available = self.processes.world, len(train) - recipe.held_out
        if train.repeat_factors is not None:
            available = int(train.repeat_factors.sum(dtype=np.float64))
        if 0 < (largest := available // world * world) < recipe.batch_size:
            self.say(
                f"The batch size is {largest} instead of {recipe.batch_size}: "
                f"only {_count(available, 'image')} for training."
            )
            self.recipe = dataclasses.replace(recipe, batch_size=largest)
        recipe = self.recipe
        length = max(1, available // recipe.batch_size)
        chosen = options.changes.keys() & {"epochs", "phases"} or len(recipe.phases) > 1
        if recipe.epochs * length < recipe.least_steps and not chosen:
            self.recipe = recipe.with_epochs(math.ceil(recipe.least_steps / length))
        counts = np.ones(1)
        if train.labels.ndim == 1:
            counts = np.bincount(train.labels.clip(min=0), minlength=len(self.labels))
        if self.recipe.balance and train.labels.ndim == 1:
            self.prior = torch.from_numpy(np.log(counts.clip(min=1) / counts.mean())).float()
        elif counts.max() >= UNEVEN * max(1, counts.min()):
            self.say(
                f"The classes are uneven, {counts.min():,} to {counts.max():,} images: rare ones are predicted too "
                "rarely, unless you set balance=true"
            )
        self.identity |= {
            "classes": [label.synset for label in self.labels],
            "training_images": _describe(train),
            "validation_images": _describe(self.val_images),
        }

    def start_network(self) -> None:
        """Load or build the network, with a head for the classes of the data.

        The head is the variant's own if the data has its classes, in its order; otherwise it is new.

        Raises:
            CheckpointError: the weights cannot be used.
            ValueError: the initial weights do not fit the network.
        """
        torch.manual_seed(self.recipe.seed)
        base, architecture = self.base, default_manifest().architectures[self.recipe.architecture or ""]
        state: Mapping[str, Tensor] | None = None
        if base is None:
            self.network = build(architecture, len(self.labels), conv_init=self.recipe.init)
            if self.options.initial_weights is not None:
                state = read_state_dict(self.options.initial_weights)
                grow_into(self.network, state)
        else:
            self.network = load(base)
            state = self.network.state_dict()
        self.identity |= {
            "architecture": dataclasses.asdict(architecture),
            "start": base and base.name,
            "start_sha256": None if state is None else checkpoint.digest(dict(state)),
        }
        classes = [label.synset for label in self.labels]
        same = base is not None and base.multi_label == self.multi_label
        if base is not None and not (same and [label.synset for label in read_labels(base.labels)] == classes):
            self.network.reset_classifier(len(self.labels))  # pyright: ignore[reportCallIssue]

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other trainers out of the folder while the block runs."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        checkpoint.expect_plain_files(self.options.out)
        with checkpoint.claimed(self.options.out) if self.processes.first else contextlib.nullcontext():
            yield

    def fit_head(self) -> None:
        """Fit the head on the network's features, if the recipe says so; training starts from it, and has to beat it.

        ``head.pt`` keeps it, so that a resumed run starts from the same.
        """
        images, path = self.train_images, self.options.out / "head.pt"
        by_table = images.labels.ndim > 1 and not self.multi_label
        if not self.recipe.fit_head or by_table or images.repeat_factors is not None:
            return
        wanted = checkpoint.digest({"identity": repr(self.identity), "recipe": repr(self.recipe)})
        kept = checkpoint.read_head(path) if self.processes.first else None
        if self.processes.first and (kept is None or kept["wanted"] != wanted):
            found = self._fitted_head(self.recipe)
            self._compare_sizes(found)
            checkpoint.write_head(path, {"wanted": wanted, **dataclasses.asdict(found)})
        self.processes.gather(None)  # the others wait, whatever they would find in the folder
        state = checkpoint.read_head(path)
        if state is None:
            raise CheckpointError(f"{path} cannot be read: delete it, and run the same command again.")
        state.pop("wanted")
        self.head = Head(**state)
        with torch.no_grad():
            fc = self.network.get_submodule("fc")
            for parameter, value in zip(fc.parameters(), (self.head.start_weight, self.head.start_bias), strict=True):
                parameter.copy_(value)
        top1 = self.head.top1
        estimate = "" if math.isnan(top1) else f": {100 * top1:.2f}% {self.figure} by cross-validation"
        self.say(f"The head was fitted on the features of {_count(self._all_images, 'image')}{estimate}")
        if self.recipe.flip and not self.head.is_symmetric:
            mirrored = f"{100 * self.head.mirrored_top1:.2f}% {self.figure}"
            self.say(f"Images are not mirrored in training: their mirror images have {mirrored}")
            self.recipe = dataclasses.replace(self.recipe, flip=False)

    def _fitted_head(self, recipe: Recipe) -> Head:
        chosen = np.random.default_rng(recipe.seed).permutation(len(self.train_images))[:MOST_FEATURES]
        features, held = self._features(self.train_images.subset(np.sort(chosen)), recipe), 0
        if self.val_images.held_out and recipe.keep_best:
            more = self._features(self.val_images, recipe)
            features, held = features.followed_by(more), len(more.labels)
        return fit_head(features, len(self.labels), prior=self.prior, held_out=held)

    def _features(self, images: LabelledImages, recipe: Recipe) -> Features:
        device, batches = self.processes.device, validation_batches(images, recipe, 0, 1, self.workers)
        batches = watched(batches, len(images), "features for the head")
        return features_of(self.network.to(device), batches, device, recipe.flip)

    @property
    def _all_images(self) -> int:
        """The number of images, with those that were held out of them."""
        return len(self.train_images) + len(self.val_images) * self.val_images.held_out

    def _compare_sizes(self, head: Head) -> None:
        """Report what another image size than that of the weights is worth: they may not know images of that size."""
        own, size = self.base and self.base.preprocessing, self.recipe.preset.crop_size
        if own is None or own.crop_size == size or math.isnan(head.top1):
            return
        same = {"eval_size": own.crop_size, "eval_resize": own.resize_size, "flip": False}
        other = self._fitted_head(dataclasses.replace(self.recipe, **same))
        self.say(
            f"At {size} x {size} pixels, the fitted head has {100 * head.top1:.2f}% {self.figure} by cross-validation; "
            f"at {own.crop_size} x {own.crop_size}, the size of these weights, {100 * other.top1:.2f}%"
        )

    def _validation(self, here: Processes) -> Iterator[tuple[Tensor, Tensor]]:
        batches = validation_batches(self.val_images, self.recipe, here.rank, here.world, self.workers)
        return watched(batches, len(self.val_images) // here.world, "validation") if here.first else batches

    @functools.cached_property
    def _class_weights(self) -> Tensor | None:
        """The weight of a validation image of each class, so that all classes count alike; None: all images do."""
        if self.prior is None or self.val_images.labels.ndim > 1:
            return None
        counts = np.bincount(self.val_images.labels.clip(min=0), minlength=len(self.labels))
        return torch.from_numpy(1 / counts.clip(min=1)).float()

    def _measure(self) -> dict[str, float]:
        """The accuracy of the network as it is now, as a row of the curve."""
        batches = self._validation(self.processes)
        network = self.network.to(self.processes.device)
        return {"epoch": 0} | accuracy(network, batches, self.processes, self._class_weights, self.multi_label)

    def train(self) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        """Train the network to the end of the recipe; return the weights to publish and the curve.

        Of a recipe with ``keep_best``, the weights are the best ones on the validation images: of the fitted head, of
        an epoch, or the last. An epoch has to beat the head by more than one standard error (Breiman et al. 1984):
        otherwise the head is published, fitted on all images, those that were held out of them too. Without
        validation images, a fitted head is not trained further: nothing could show that it helps.

        Raises:
            DivergedError, StoppedError, OutputError, CheckpointError: see `Loop.run`.
        """
        out, recipe, head = self.options.out, self.recipe, self.head
        start = None
        if head is not None and not len(self.val_images):
            recipe = recipe.with_epochs(0)
            self.say("The features are not trained: without validation images, nothing could show that it helps")
        elif head is not None:
            start = self._measure(), copy.deepcopy(checkpoint.contiguous(self.network.state_dict()))
        train_set = self._train_set()
        sizes = f"{_count(len(train_set), 'image')} for training, {len(self.val_images):,} for validation"
        where = f"{_count(recipe.epochs, 'epoch')} on {self.processes.world} x {self.processes.device.type}"
        self.say(f"{len(self.labels)} classes, {sizes}; {where}")
        loggers = self.options.loggers
        if loggers is None:
            loggers = [name for name in ("tensorboard",) if not missing([name])]
        how: Any = {"shown": self.processes.first, "loggers": loggers, "recipe": recipe.as_dict()}
        with Display(out, recipe.batch_size, **how) as display:
            loop = Loop(
                self.network,
                recipe,
                train_set,
                self._validation,
                out,
                identity=self.identity,
                about={
                    "data": list(self.options.data),
                    "val": self.options.val,
                    "command": sys.argv,
                    "python": platform.python_version(),
                },
                micro_batch=self.options.micro_batch,
                checkpoint_seconds=self.options.checkpoint_seconds,
                prior=self.prior,
                weights=self._class_weights,
                multi_label=self.multi_label,
                minutes=self.options.minutes,
                spent=time.monotonic() - self.begun,
                watch=display,
                say=self.say,
            )
            weights, curve = loop.run()
        if broken := len(unreadable(out)):
            self.say(f"{_count(broken, 'training image')} could not be read: see {out / 'broken.csv'}")
        self.resumed_complete = loop.first_step == loop.steps > 0
        if head is not None and not recipe.epochs:
            return self._with_head(read_state_dict(weights), head), [self._head_row(head)]
        if not recipe.keep_best or math.isnan(figure_of(curve[-1])):
            return read_state_dict(weights), curve
        best = best_row(curve)
        if start is None or head is None:
            return read_state_dict(out / BEST), [*curve, best]
        before, state = start
        figure = figure_of(before)
        error = math.sqrt(figure * (1 - figure) / len(self.val_images))
        said = f"on the validation images, the fitted head has {100 * figure:.2f}% {self.figure}, fine-tuning "
        said += f"{100 * figure_of(best):.2f}% after epoch {best['epoch']:.0f}"
        if figure_of(best) > figure + error:
            self.say(f"Fine-tuned: {said}")
            return read_state_dict(out / BEST), [*curve, best]
        self.say(f"Only the head is trained: {said}; one standard error is {100 * error:.2f} points")
        if self.val_images.held_out:
            self.val_images = self.val_images.subset(np.zeros(0, int))  # the published head has seen them
            before = self._head_row(head)
        return self._with_head(state, head), [*curve, before]

    def _with_head(self, state: dict[str, Tensor], head: Head) -> dict[str, Tensor]:
        """The weights with the head that was fitted on all images; with its temperature, if no others can show one."""
        weight, bias, found = head.weight, head.bias, head.calibration
        if not len(self.val_images) and found is not None and self._all_images >= LEAST_VALIDATION:
            self._say_calibration(Calibration(*found), "by cross-validation")
            weight, bias = weight / found[0], bias / found[0]
        return state | {"fc.weight": weight, "fc.bias": bias}

    def _head_row(self, head: Head) -> dict[str, float]:
        """A row of the curve with the head's accuracy by cross-validation."""
        row = dict.fromkeys(("val_loss", "val_top1", "val_top5", "val_map"), math.nan)
        return row | {"epoch": 0, "val_map" if self.multi_label else "val_top1": head.top1}

    def _say_calibration(self, found: Calibration, how: str) -> None:
        if found.temperature == 1:  # of `calibration`, nothing else is exactly 1
            self.say(f"Not calibrated {how}: every image is right, which does not show how sure the network should be")
            return
        wrong = ""
        if found.wrong >= NOISE:
            wrong = f". About {100 * found.wrong:.0f}% of the labels seem to be wrong, which these figures allow for"
        self.say(
            f"Calibrated {how}: the logits are divided by {found.temperature:.3f}; the expected calibration error goes "
            f"from {100 * found.before:.1f}% to {100 * found.after:.1f}%{wrong}"
        )

    def _train_set(self) -> TrainingSet:
        if not self.recipe.in_memory:
            return FromFiles(self.recipe, self.train_images, self.workers)
        scores = None
        if self.options.teacher_scores is not None:
            scores = read_scores(self.options.teacher_scores)
            self.identity["teacher_scores_sha256"] = checkpoint.digest(scores)
            scores = scores[self.order]
        return InMemory(self.recipe, PixelTable.read(self.train_images), scores, self.processes.device)

    def publish(self, state: dict[str, Tensor], curve: list[dict[str, float]]) -> FinishedRun:
        """Make the folder a variant with these weights. Existing files stay as they are."""
        options, weights = self.options, None
        if self.processes.first:
            state = self._calibrated(state)
            if self.val_images.images is self.train_images.images and len(self.val_images) > 0:  # from the same source
                write_held_out(self.val_images, options.out)
            about: Any = {"data": " ".join(options.data), "base": self.base, "multi_label": self.multi_label}
            weights = publish_run(state, self.recipe, self.labels, curve[-1], options.out, **about)
        finished = FinishedRun(options.out, self.processes.gather(weights)[0], self.labels, tuple(curve))
        accuracy = "there were no validation images, so no accuracy is known"
        if not math.isnan(figure := figure_of(curve[-1])):
            how = f"on {_count(len(self.val_images), 'image')}" if len(self.val_images) else "by cross-validation"
            how += ", all classes counting the same" if self.prior is not None else ""
            accuracy = f"{100 * figure:.2f}% {self.figure} {how}"
        complete = self.resumed_complete
        self.say(f"This run is complete: {finished.weights}" if complete else f"Saved {finished.weights}: {accuracy}")
        return finished

    def _calibrated(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fold a temperature into the head, fitted on held-out images, so that probabilities mean what they say."""
        if self.recipe.held_out:
            images, first = self.train_images, len(self.train_images) - self.recipe.held_out
        elif self.recipe.fit_head and len(self.val_images) >= LEAST_VALIDATION and self.val_images.labels.ndim == 1:
            images, first = self.val_images, 0
        else:
            return state
        self.network.load_state_dict(state)
        held = images.subset(np.arange(first, len(images)))
        scores, labels = scores_of(self.network.cpu(), self.recipe, held)
        found = calibration(scores, labels, self.prior is not None, noisy=not self.recipe.held_out)
        fold_temperature(self.network.get_submodule("fc"), found.temperature)
        self._say_calibration(found, f"on {_count(len(labels), 'held-out image')}")
        return self.network.state_dict()


def _recipe(options: RunOptions, base: Checkpoint | None) -> Recipe:
    """The recipe with the options' changes, and with the rest from the weights to start from."""
    recipe = load_recipe(options.recipe or "finetune", options.changes)
    recipe = recipe.resolved(base and base.preprocessing, base and base.architecture_name)
    known = default_manifest().architectures
    if recipe.architecture is None or recipe.architecture not in known:
        raise RecipeError(
            f"Unknown architecture {recipe.architecture!r} in the recipe: pass a variant, or set the architecture."
        )
    if base is not None and recipe.architecture != base.architecture_name:
        raise RecipeError(f"{base.name} is a {base.architecture_name}, but the recipe is for {recipe.architecture}.")
    if base is not None and base.architecture != known[recipe.architecture]:
        raise RecipeError(f"{base.variant} describes another {recipe.architecture} than this version's.")
    return recipe


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _describe(images: LabelledImages) -> str:
    """The number of images, and a digest of their names below the data's root and of their classes."""
    found = hashlib.sha256()
    for row, label in zip(images.rows.tolist(), images.labels.tolist(), strict=True):
        found.update(f"{images.images.key(row)}\0{label}\n".encode("utf-8", "surrogateescape"))
    if images.repeat_factors is not None:
        found.update(images.repeat_factors.tobytes())
    return f"{len(images)}, sha256 {found.hexdigest()[:16]}"
