"""Train or fine-tune like 'resnext-hub train', in several processes: torchrun -m resnext_hub.training ..."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
