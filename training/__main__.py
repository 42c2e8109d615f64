"""Train or fine-tune like 'resnext-hub train', in several processes: torchrun -m resnext_hub.training ..."""

import argparse
import sys

from ..models.manifest import default_manifest
from .command import add_arguments, run

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m resnext_hub.training", description=__doc__)
    add_arguments(parser)
    sys.exit(run(parser.parse_args(), default_manifest()))
