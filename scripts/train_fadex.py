"""`python scripts/train_fadex.py ...` is `face2scene train-fadex ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train-fadex", *sys.argv[1:]]))
