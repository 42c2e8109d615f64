"""The papers' claims at small scale: do unlabelled or hashtagged images help beyond the labels?

Trains the same student on 100 classes of Tiny ImageNet at 32x32, with labels for a tenth of the images (50 per class,
5,000 in total) and the other 45,000 unlabelled; each arm has the same number of steps, crops and flips:

- supervised: on the labels alone;
- semi: on the images that a teacher selected, then on the labels (arXiv 1905.00546); the teacher is the same network,
  trained longer on the labels alone, with mixup and CutMix;
- weak: on simulated hashtags (several per image, some wrong, some missing), then on the labels (arXiv 1805.00932);
- semi-weak: like semi, with the network of "weak" as the teacher.

    python benchmarks/weak_and_semi.py --data ../shared/data/tiny-imagenet-200 --work /tmp/runs --seed 0 [--seed 1 ...]

Every step can be resumed. The figures are of the last epoch, not of the best one. Prints the table of docs/results.md
and writes --out as CSV.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from resnext_hub.data.splits import open_images, own_names
from resnext_hub.data.stores import Access
from resnext_hub.models.entrypoints import build
from resnext_hub.models.manifest import Architecture
from resnext_hub.models.resnext import ResNeXt
from resnext_hub.processes import Processes
from resnext_hub.processing_utils.labels import Label
from resnext_hub.training.batches import InMemory
from resnext_hub.training.loop import Loop
from resnext_hub.training.pixels import PixelTable, resized_crops
from resnext_hub.training.recipe import Phase, Recipe
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

CLASSES, LABELLED, PER_CLASS, BEST = 100, 50, 300, 5
SIZE, BATCH = 32, 128
PRETRAINING, FINETUNING = 1170, 390  # steps; supervised training takes both
TEACHING, WEAK_EPOCHS = 3120, 3
STUDENT = Architecture("Bottleneck", (1, 1, 1, 1), 8, 16, None, 16, False)
ARMS = ("supervised", "semi", "weak", "semi-weak")


class Experiment:
    """One seed's data and runs."""

    def __init__(self, data: Path, work: Path, seed: int) -> None:
        self.data, self.work, self.seed = data, work / str(seed), seed
        self.work.mkdir(parents=True, exist_ok=True)
        names = own_names(str(data), Access())
        every = list(names)
        synsets = every[:: 200 // CLASSES]
        self.labels = [Label(i, synset, names[synset]) for i, synset in enumerate(synsets)]
        index = torch.full((len(every),), -1)
        index[[every.index(synset) for synset in synsets]] = torch.arange(CLASSES)

        def chosen(part: str) -> tuple[PixelTable, np.ndarray]:
            table = PixelTable.read(open_images(data / f"{part}*.parquet", every))
            labels = index[table.labels]
            rows = torch.nonzero(labels >= 0)[:, 0]
            return PixelTable(table.images[rows], labels[rows], synsets), rows.numpy()

        self.val, _ = chosen("val")
        images, rows = chosen("train")
        order = np.random.default_rng(seed).permutation(len(images))
        of_class = images.labels.numpy()[order]
        labelled = np.concatenate([order[of_class == c][:LABELLED] for c in range(CLASSES)])
        rest = np.setdiff1d(np.arange(len(images)), labelled)
        self.labelled = images.subset(torch.from_numpy(np.sort(labelled)))
        self.unlabelled = images.subset(torch.from_numpy(rest))
        self.rows = rows[rest]  # of the unlabelled images in the parquet files
        del images

    def run(
        self, name: str, network: ResNeXt, table: PixelTable, steps: int, lr: float, mixing: bool = False
    ) -> tuple[ResNeXt, float]:
        """(the network, trained for ``steps``; its top-1 accuracy in percent)."""
        epochs = max(1, round(steps / (len(table) // BATCH)))
        assert epochs * (len(table) // BATCH) == steps, (name, epochs, len(table) // BATCH, steps)
        recipe = Recipe(
            (Phase(epochs, SIZE),), batch_size=BATCH, lr=lr, warmup_epochs=min(1.0, epochs / 10), weight_decay=5e-4,
            crop_scale=(0.35, 1.0), amp="bf16", in_memory=True, seed=100 * self.seed,
            mixup=0.2 * mixing, cutmix=1.0 * mixing,
        ).resolved(None, None)  # fmt: skip

        def validation(processes: Processes) -> Iterator[tuple[Tensor, Tensor]]:
            whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
            for images, labels in self.val.batches(250):
                crops = resized_crops(images, whole.expand(len(images), 4), torch.zeros(len(images)) > 0, SIZE)
                yield normalize(crops / 255, list(recipe.preset.mean), list(recipe.preset.std)), labels

        loop = Loop(
            network, recipe, InMemory(recipe, table), validation, self.work / name,
            checkpoint_seconds=60,
            say=lambda line: print(f"{self.seed} {name} {line}", flush=True),
        )  # fmt: skip
        weights, rows = loop.run()
        network.load_state_dict(torch.load(weights, weights_only=True))
        return network, 100 * rows[-1]["val_top1"]

    def new(self, which: int = 1) -> ResNeXt:
        torch.manual_seed(1000 * self.seed + which)
        return build(STUDENT, CLASSES)

    @torch.inference_mode()
    def scores(self, network: nn.Module, out: Path) -> Path:
        """The table that ``resnext-hub classify --top`` would make of the unlabelled images, mirrored ones averaged."""
        network.eval()
        found: list[Tensor] = []
        whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        for images in self.unlabelled.images.split(500):
            crops = resized_crops(images, whole.expand(len(images), 4), torch.zeros(len(images)) > 0, SIZE)
            x = normalize(crops / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            with torch.autocast("cpu", torch.bfloat16):
                probs = network(x).float().softmax(1) + network(x.flip(3)).float().softmax(1)
            found.append(probs / 2)
        best = torch.cat(found).topk(BEST, dim=1)
        pq.write_table(
            pa.table(
                {
                    "image": [f"row {row}" for row in self.rows],
                    "index": pa.array(np.arange(len(self.rows))),
                    "classes": pa.array(best.indices.int().tolist(), pa.list_(pa.int32())),
                    "probabilities": pa.array(best.values.tolist(), pa.list_(pa.float32())),
                }
            ),
            out,
        )
        return out

    def selected(self, name: str, teacher: nn.Module) -> PixelTable:
        """The images that a teacher chooses, with its classes."""
        from resnext_hub.curation.selection import select

        scores, out = self.work / f"{name}_scores.parquet", self.work / f"{name}_selected.parquet"
        if not scores.exists():
            self.scores(teacher, scores)
        select(str(scores), out, per_class=PER_CLASS, max_classes=BEST, num_classes=CLASSES)
        table = pq.read_table(out)
        rows, classes = torch.tensor(table["index"].to_pylist()), torch.tensor(table["class"].to_pylist())
        right = (self.unlabelled.labels[rows] == classes).float().mean().item()
        print(f"{self.seed} {name}: {len(rows):,} images chosen, {100 * right:.1f}% of them of the class", flush=True)
        return self.unlabelled.subset(rows, classes)

    def hashtagged(self) -> PixelTable:
        """The unlabelled images with several classes each, as their hashtags say, rare classes more often."""
        from resnext_hub.benchmarks.simulation import simulate_hashtags
        from resnext_hub.curation.hashtags import make_mapping, make_targets, resampled_indices

        mapping, _ = make_mapping(self.labels)
        tags = simulate_hashtags(self.unlabelled.labels.tolist(), self.labels, seed=self.seed)
        tagged, out = self.work / "hashtags.parquet", self.work / "targets.parquet"
        if not tagged.exists():
            columns = {
                "image": [f"row {row}" for row in self.rows],
                "index": np.arange(len(self.rows)),
                "hashtags": tags,
            }
            pq.write_table(pa.table(columns), tagged)
        make_targets(str(tagged), out, mapping)
        table = pq.read_table(out)
        wanted = PRETRAINING // WEAK_EPOCHS * BATCH
        order = resampled_indices(table["repeat_factor"].to_numpy(), self.seed, 0)
        order = np.resize(order, wanted) if len(order) < wanted else order[:wanted]
        lists = table["targets"].to_pylist()
        rows = np.asarray(table["index"].to_pylist())[order]
        width = max(map(len, lists))
        labels = torch.tensor([[*lists[i], *[-1] * (width - len(lists[i]))] for i in order])
        return self.unlabelled.subset(torch.from_numpy(rows), labels)

    def arms(self) -> dict[str, float]:
        """Top-1 accuracy of every arm, in percent."""
        found: dict[str, float] = {}
        _, found["supervised"] = self.run("supervised", self.new(), self.labelled, PRETRAINING + FINETUNING, 0.2)
        teacher, found["teacher of semi"] = self.run("teacher", self.new(2), self.labelled, TEACHING, 0.2, mixing=True)
        student, _ = self.run("semi", self.new(), self.selected("semi", teacher), PRETRAINING, 0.2)
        _, found["semi"] = self.run("semi_finetuned", student, self.labelled, FINETUNING, 0.05)
        student, _ = self.run("weak", self.new(), self.hashtagged(), PRETRAINING, 0.2)
        student.reset_classifier(CLASSES)  # hashtags are not the classes, as in the paper
        teacher, found["weak"] = self.run("weak_finetuned", student, self.labelled, FINETUNING, 0.05)
        student, _ = self.run("semiweak", self.new(), self.selected("semiweak", teacher), PRETRAINING, 0.2)
        _, found["semi-weak"] = self.run("semiweak_finetuned", student, self.labelled, FINETUNING, 0.05)
        return found


def table(rows: list[dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds, and the paired difference to supervised training."""
    lines = ["| training | top-1 (%) | difference to supervised | seeds |", "|---|---|---|---|"]
    for arm in [*ARMS, "teacher of semi"]:
        values = [row[arm] for row in rows]
        gains = [row[arm] - row["supervised"] for row in rows]

        def text(numbers: list[float], sign: str = "") -> str:
            spread = f" ± {statistics.stdev(numbers):.2f}" if len(numbers) > 1 else ""
            return f"{statistics.mean(numbers):{sign}.2f}{spread}"

        gain = "–" if arm == "supervised" else text(gains, "+")
        lines.append(f"| {arm} | {text(values)} | {gain} | {', '.join(f'{v:.2f}' for v in values)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of Tiny ImageNet's Parquet files")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seed", type=int, action="append", required=True, help="random seed; repeat for several runs")
    parser.add_argument("--out", type=Path, help="file for all figures (.csv)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [{"seed": float(seed)} | Experiment(options.data, options.work, seed).arms() for seed in options.seed]
    if options.out:
        with open(options.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
