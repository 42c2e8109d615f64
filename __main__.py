"""``python -m resnext_hub``: the command `resnext-hub`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
