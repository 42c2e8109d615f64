"""Draw predictions beside their image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..packages import needed
from .images import ImageSource, open_image
from .predictions import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_predictions(image: ImageSource, predictions: Sequence[Prediction], title: str = "", **options: Any) -> Figure:
    """A figure of the image, and beside it a bar for each prediction.

    ``figure.savefig("picture.png")`` writes it; a notebook shows it as the value of a cell.
    """
    with needed("A picture", "pictures"):
        from matplotlib.figure import Figure  # takes half a second, which a classification does not need

    ink, bar, rest = "#1f2933", "#2f6f9f", "#9db8cc"
    figure = Figure(figsize=(9, max(3.6, 0.3 * len(predictions))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.45))
    left.imshow(open_image(image, **options))
    left.axis("off")
    labels = [p.label.split(",")[0] for p in predictions]
    shares = [100 * p.probability for p in predictions]
    rows = range(len(predictions))
    right.barh(rows, shares, height=0.62, color=[bar if row == 0 else rest for row in rows])
    right.invert_yaxis()
    right.set_yticks(rows, labels, fontsize=11, color=ink)
    right.set_xlim(0, 112)  # the full width is certainty: 5% must not look like it
    for row, share in zip(rows, shares, strict=True):
        right.text(share, row, f" {share:.1f}%", va="center", fontsize=10, color=ink)
    right.xaxis.set_visible(False)
    right.tick_params(left=False)
    right.spines[:].set_visible(False)
    if title:
        right.set_title(title, fontsize=11, color=ink, loc="left")
    return figure
