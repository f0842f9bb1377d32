"""`python scripts/train_tiny_base.py ...` is `face2scene train-tiny-base ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train-tiny-base", *sys.argv[1:]]))
