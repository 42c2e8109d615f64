"""The ResNeXt models of PyTorch Hub.

    from resnext_hub import classifier

    classify = classifier("resnext_tiny")
    for prediction in classify("photo.jpg"):
        print(f"{prediction.probability:.1%}  {prediction.label}")

The names in ``__all__`` are imported at their first use. They need torch, numpy and Pillow alone; a plot also needs
matplotlib. The networks are in `resnext_hub.hubconf`. Functions that need other packages are imported from their own
modules: `inference.bulk.classify_many`, `evaluation.evaluate.evaluate`, `deploy.export.export`.
"""

# Imports nothing, `typing` included: pytest, type checkers and mount.py meet this file under other names, and every
# command starts here. (Without the annotation, jedi, which completes names in notebooks, would skip the block.)
TYPE_CHECKING: bool = False
if TYPE_CHECKING:
    from .errors import (
        CheckpointError,
        EngineError,
        FetchError,
        ImageError,
        MissingPackageError,
        ResNeXtHubError,
        UnknownVariantError,
    )
    from .inference.classifier import Classifier, classifier
    from .processing_utils.images import open_image
    from .processing_utils.inputs import transforms
    from .processing_utils.plot import plot_predictions
    from .processing_utils.predictions import Prediction

__version__ = "0.1.0"  # pyproject.toml reads it from here

__all__ = [
    "CheckpointError",
    "Classifier",
    "EngineError",
    "FetchError",
    "ImageError",
    "MissingPackageError",
    "Prediction",
    "ResNeXtHubError",
    "UnknownVariantError",
    "__version__",
    "classifier",
    "open_image",
    "plot_predictions",
    "transforms",
]

_MODULES = {
    "Classifier": "inference.classifier",
    "Prediction": "processing_utils.predictions",
    "classifier": "inference.classifier",
    "open_image": "processing_utils.images",
    "plot_predictions": "processing_utils.plot",
    "transforms": "processing_utils.inputs",
}

if not TYPE_CHECKING:  # a type checker would take any name for one of these

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f".{_MODULES.get(name, 'errors')}", __name__), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
