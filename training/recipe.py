"""Training recipes: typed values, read from TOML files and changed by options."""

from __future__ import annotations

import dataclasses
import math
import platform
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import RecipeError
from ..models.manifest import Preprocessing

if TYPE_CHECKING:
    import torch

RECIPES = Path(__file__).parent / "recipes"
SHORT = ("epochs", "image_size")  # keys of a recipe that stand for those of its only phase


@dataclasses.dataclass(frozen=True)
class Phase:
    """Epochs at one image size in pixels, by default that of the weights to start from.

    Several phases resize progressively: small images, which are cheap, come first.
    """

    epochs: int
    image_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights, besides the data and the initial weights.

    Network: ``architecture``, by its name in the manifest (None: that of the variant to fine-tune); ``init``: the
    variance of new convolutions is scaled by "fan_out" (torchvision) or "fan_in" (NVIDIA).

    Optimiser: SGD, or AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), for at least ``least_steps`` steps. ``lr``
    is the peak learning rate for ``lr_batch`` images, and scales linearly with ``batch_size``, the images of a step in
    all processes (Goyal et al. 2017, arXiv 1706.02677); without ``lr_batch`` it does not scale. It rises linearly from
    ``warmup_start`` times the peak in ``warmup_epochs``. Then "cosine" falls to zero over the last ``decay_epochs``
    (None: all that are left; Loshchilov & Hutter 2016, arXiv 1608.03983), and "halving" halves it ``halvings`` times
    at equal distances (Mahajan et al. 2018). It changes every step or every epoch (``lr_every``). Parameters in
    ``undecayed`` have no weight decay: "norm" (of normalisation layers), "bias". With ``ema_decay`` above 0, a moving
    average of the weights is validated and published. It is updated every ``ema_every`` steps, and begins after the
    warm-up.

    Images: random crops of ``crop_scale`` of the area, mirrored (``flip``); ``auto_augment``: RandAugment (arXiv
    1909.13719) or TrivialAugment (arXiv 2103.10158); ``erasing``: its probability (arXiv 1708.04896); ``mixup`` and
    ``cutmix``: alpha (arXiv 1710.09412, 1905.04899), one of the two per batch; ``repeats``: how often an image comes in
    an epoch, of that many times fewer images (repeated augmentation, Hoffer et al. 2019, arXiv 1901.09335). Validation
    resizes the shorter side to ``eval_resize`` and crops ``eval_size``. None: the size of the last phase, in the
    proportion of the weights to start from, or 256/224. ``mean`` and ``std``: as for those weights, or ImageNet's.

    Arithmetic: ``amp`` is the type of autocast, with a gradient scaler for "fp16" (see `on`); ``channels_last``;
    ``grad_checkpointing``; ``compile``; ``sync_batchnorm`` for several GPUs.

    Fine-tuning: ``fit_head`` fits the head on the features first (`head`), and ``keep_best`` publishes the better of
    that, the best epoch and the last. ``head_only`` trains the head on frozen features (linear probe); ``freeze_norm``
    freezes normalisation layers, and ``freeze`` the first stages: 1 is the stem, 2 also layer1, up to 5. Each stage
    from the head down has ``layer_decay`` times the learning rate of the next; the head has ``head_lr`` times the
    others'. ``balance`` treats the classes as equally frequent, however many images each has: training adds the
    logarithms of their frequencies to the logits (Menon et al. 2020, arXiv 2007.07314). With ``patience``, training
    ends after that many epochs without a better one on the validation images.

    ``in_memory`` holds small images of one size decoded, in a GPU's memory if there is one (`pixels.PixelTable`). The
    last ``held_out`` training images are not trained on: the temperature of the scores is fitted on them (`calibrate`).
    ``distillation_weight`` is the share of the loss that compares the network with a teacher's scores
    (`teacher_scores`), both softened by ``distillation_temperature`` (Hinton et al. 2015, arXiv 1503.02531); the rest
    is the loss of the labels.
    """

    phases: tuple[Phase, ...]
    architecture: str | None = None
    init: Literal["fan_out", "fan_in"] = "fan_out"

    optimizer: Literal["sgd", "adamw"] = "sgd"
    batch_size: int = 256
    least_steps: int = 0
    lr: float = 0.1
    lr_batch: int | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-5
    undecayed: tuple[str, ...] = ("norm", "bias")
    clip_grad: float | None = None
    schedule: Literal["cosine", "halving"] = "cosine"
    lr_every: Literal["step", "epoch"] = "step"
    warmup_epochs: float = 1.0
    warmup_start: float = 0.001
    decay_epochs: float | None = None
    halvings: int = 13
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    ema_every: int = 1

    crop_scale: tuple[float, ...] = (0.08, 1.0)
    flip: bool = True
    auto_augment: Literal["none", "rand", "trivial"] = "none"
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    eval_resize: int | None = None
    eval_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    grad_checkpointing: bool = False
    compile: bool = False
    sync_batchnorm: bool = False

    fit_head: bool = False
    keep_best: bool = False
    head_only: bool = False
    freeze_norm: bool = False
    freeze: int = 0
    layer_decay: float = 1.0
    head_lr: float = 1.0
    balance: bool = False
    patience: int | None = None

    in_memory: bool = False
    held_out: int = 0
    distillation_weight: float = 0.0
    distillation_temperature: float = 1.0
    seed: int = 0

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def with_epochs(self, epochs: int) -> Recipe:
        """A recipe of one phase with another number of epochs."""
        return dataclasses.replace(self, phases=(dataclasses.replace(self.phases[0], epochs=epochs),))

    @property
    def peak_lr(self) -> float:
        return self.lr * (self.batch_size / self.lr_batch if self.lr_batch else 1.0)

    def lr_share(self, epoch: float) -> float:
        """The learning rate as a share of its peak, for an epoch counted from 0; fractions are allowed."""
        if self.lr_every == "epoch":
            epoch = math.floor(epoch)
        if epoch < self.warmup_epochs:
            return self.warmup_start + (1 - self.warmup_start) * epoch / self.warmup_epochs
        trained = self.epochs - self.warmup_epochs
        if self.schedule == "halving":
            return 0.5 ** int((epoch - self.warmup_epochs) / max(trained, 1e-9) * (self.halvings + 1))
        decay = trained if self.decay_epochs is None else self.decay_epochs
        left = min(max(self.epochs - epoch, 0.0) / max(decay, 1e-9), 1.0)
        return 0.5 * (1 - math.cos(math.pi * left))

    def image_size(self, epoch: int) -> int:
        """The image size in pixels of an epoch counted from 0."""
        for phase in self.phases:
            if epoch < phase.epochs:
                assert phase.image_size is not None, "the recipe was not resolved"
                return phase.image_size
            epoch -= phase.epochs
        raise IndexError(f"The epoch must be less than {self.epochs}.")

    def resolved(self, preset: Preprocessing | None, architecture: str | None) -> Recipe:
        """The recipe with all values set; missing ones come from the weights to start from."""
        last = self.phases[-1].image_size
        size = self.eval_size or last or (preset.crop_size if preset else 224)
        known, crop = (preset.resize_size, preset.crop_size) if preset else (256, 224)
        resize = self.eval_resize or size * known // crop
        return dataclasses.replace(
            self,
            architecture=self.architecture or architecture,
            phases=tuple(Phase(p.epochs, p.image_size or (preset.crop_size if preset else 224)) for p in self.phases),
            eval_size=size,
            eval_resize=resize,
            mean=self.mean or (preset.mean if preset else (0.485, 0.456, 0.406)),
            std=self.std or (preset.std if preset else (0.229, 0.224, 0.225)),
        )

    def on(self, device: torch.device) -> Recipe:
        """The recipe for a device: without mixed precision if the hardware would only emulate it, many times slower."""
        return self if self.amp == "none" or computes(device, self.amp) else dataclasses.replace(self, amp="none")

    @property
    def preset(self) -> Preprocessing:
        """The preprocessing of the trained network."""
        if not (self.eval_resize and self.eval_size and self.mean and self.std):
            raise RecipeError(
                "The recipe does not set all of eval_resize, eval_size, mean and std: call resolved() first."
            )
        (r, g, b), (red, green, blue) = self.mean, self.std
        means, deviations = (r, g, b), (red, green, blue)
        return Preprocessing(self.eval_resize, self.eval_size, "bilinear", True, means, deviations, source="the recipe")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


TYPES = typing.get_type_hints(Recipe)


def computes(device: torch.device, amp: str) -> bool:
    """True if a device computes in bf16 or fp16 itself."""
    import torch

    if device.type == "cuda":
        return amp == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    if platform.machine().lower() in ("x86_64", "amd64"):
        if amp == "fp16":
            return torch.cpu._is_amx_fp16_supported()
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return amp == "bf16" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _checked(key: str, value: Any) -> Any:
    """A value from TOML, converted to the type of its key.

    Raises:
        RecipeError: it has another type.
    """
    expected = TYPES[key]
    choices = [a for a in (typing.get_args(expected) or (expected,)) if a is not type(None)]
    if typing.get_origin(expected) is Literal:
        if value not in choices:
            raise RecipeError(f"{key} must be one of {', '.join(map(repr, choices))}, not {value!r}.")
        return value
    if typing.get_origin(expected) is tuple or (choices and typing.get_origin(choices[0]) is tuple):
        if not isinstance(value, list | tuple):
            raise RecipeError(f"{key} must be a list, not {value!r}.")
        return tuple(value)
    if float in choices and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) not in choices:
        raise RecipeError(f"{key} must have the type {' or '.join(c.__name__ for c in choices)}, not {value!r}.")
    return value


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word needs no quotes on a command line


def load_recipe(recipe: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe by its name in training/recipes or from a TOML file, and change the values in ``overrides``.

    Strings among the overrides are read as TOML. "epochs" and "image_size" can be changed if the recipe has one phase.

    Raises:
        RecipeError: no such recipe; a key that no recipe has, one that is missing, or a value that makes no sense.
    """
    path = RECIPES / f"{recipe}.toml"
    path = path if path.is_file() else Path(recipe)
    try:
        with open(path, "rb") as file:
            values: dict[str, Any] = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise RecipeError(
            f"Cannot read the recipe {recipe} ({error}). Choose from {known}, or pass a TOML file."
        ) from error
    changed = {k: _parsed(v) if isinstance(v, str) else v for k, v in (overrides or {}).items()}
    if "phases" in changed:
        values = {key: value for key, value in values.items() if key not in SHORT}
    try:
        return _made(values | changed)
    except RecipeError as error:
        if changed and _makes_sense(values):
            raise  # the error is in the overrides, not in the file
        raise RecipeError(f"{path}: {error}") from error


def _makes_sense(values: Mapping[str, Any]) -> bool:
    try:
        _made(values)
    except RecipeError:
        return False
    return True


def _made(values: Mapping[str, Any]) -> Recipe:
    values = dict(values)
    short = {key: values.pop(key) for key in SHORT if key in values}
    try:
        phases = [Phase(**phase) for phase in values.pop("phases", [])]
        if short and len(phases) > 1:
            what = " and ".join(short)
            raise RecipeError(f"{what} can only be set for a recipe with one phase; this one has {len(phases)}.")
        if short:
            phases = [Phase(**(dataclasses.asdict(phases[0]) if phases else {}) | short)]
    except TypeError as error:
        raise RecipeError(f"{error}.") from error
    if not phases:
        raise RecipeError("phases or epochs must be set.")
    if unknown := sorted(values.keys() - TYPES.keys()):
        raise RecipeError(f"Unknown keys: {', '.join(unknown)}. Choose from {', '.join(sorted({*SHORT, *TYPES}))}.")
    made = Recipe(phases=tuple(phases), **{k: _checked(k, v) for k, v in values.items()})
    try:
        _check_ranges(made)
    except TypeError as error:
        raise RecipeError(f"{error}.") from error
    return made


#: Values from and to; sizes, mean and std as the manifest's schema has them, or the result could not be used.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "repeats", "ema_every", "patience"), (1, math.inf)),
    "freeze": (0, 5),
    **dict.fromkeys(("lr_batch", "clip_grad"), (1e-9, math.inf)),
    **dict.fromkeys(("lr", "weight_decay", "held_out", "halvings", "warmup_epochs", "decay_epochs"), (0, math.inf)),
    **dict.fromkeys(("mixup", "cutmix", "layer_decay", "head_lr", "seed"), (0, math.inf)),
    **dict.fromkeys(("label_smoothing", "ema_decay", "erasing", "distillation_weight", "momentum"), (0, 1)),
    **dict.fromkeys(("warmup_start", "mean"), (0, 1)),
    **dict.fromkeys(("image_size", "eval_size", "eval_resize"), (1, 4096)),
    "distillation_temperature": (1e-9, math.inf),
    "std": (0.001, 1),
}


def _check_ranges(recipe: Recipe) -> None:
    for key, (low, high) in RANGES.items():
        value = [phase.image_size for phase in recipe.phases] if key == "image_size" else getattr(recipe, key)
        for number in value if isinstance(value, list | tuple) else (value,):
            if number is not None and not (low <= number <= high and math.isfinite(number)):
                bound = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
                raise RecipeError(f"{key} must be {bound}, not {number}.")
    for phase in recipe.phases:
        for key, value in (("epochs", phase.epochs), ("image_size", phase.image_size)):
            if type(value) is not int and (key == "epochs" or value is not None):
                raise RecipeError(f"{key} must be a whole number, not {value!r}.")
    if recipe.epochs < 1 or any(phase.epochs < 0 for phase in recipe.phases):
        raise RecipeError(f"epochs must be 1 or more, not {recipe.epochs}.")
    if len(recipe.crop_scale) != 2 or not 0 < recipe.crop_scale[0] <= recipe.crop_scale[1] <= 1:
        raise RecipeError(f"crop_scale must be two fractions of the area, the smaller first, not {recipe.crop_scale}.")
    for key in ("mean", "std"):
        if getattr(recipe, key) is not None and len(getattr(recipe, key)) != 3:
            raise RecipeError(f"{key} must have three numbers.")
    if wrong := set(recipe.undecayed) - {"norm", "bias"}:
        raise RecipeError(f"undecayed may have norm and bias, not {sorted(wrong)}.")
