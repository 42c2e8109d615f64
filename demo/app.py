"""The script of a Hugging Face Space. The first variant needs no download; the others are downloaded when chosen."""

from resnext_hub.demo.logic import Models
from resnext_hub.demo.page import serve

VARIANTS = ("resnext_tiny", "resnext50_32x4d.IMAGENET1K_V2", "resnext50_32x4d_swsl", "resnext101_32x8d_wsl")

if __name__ == "__main__":
    serve(Models(VARIANTS), "0.0.0.0", 7860)
