"""Turn images from anywhere into batches, scores into named predictions, and predictions into a picture.

torch.hub's ``nvidia_convnets_processing_utils`` returns this module. It needs Pillow and numpy; URLs need validators.
"""

from ..errors import FetchError, ImageError
from .images import open_image
from .inputs import Transform, prepare_input_from_uri, prepare_inputs, prepare_pixels, transforms
from .labels import Label, read_labels
from .plot import plot_predictions
from .predictions import Prediction, pick_n_best, top_predictions
from .preprocessing import GRADES, crop_pixels, load_pixels, normalise, preprocess
from .uris import fetch

__all__ = [
    "GRADES",
    "FetchError",
    "ImageError",
    "Label",
    "Prediction",
    "Transform",
    "crop_pixels",
    "fetch",
    "load_pixels",
    "normalise",
    "open_image",
    "pick_n_best",
    "plot_predictions",
    "prepare_input_from_uri",
    "prepare_inputs",
    "prepare_pixels",
    "preprocess",
    "read_labels",
    "top_predictions",
    "transforms",
]
