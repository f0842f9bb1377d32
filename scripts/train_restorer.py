"""`python scripts/train_restorer.py ...` is `face2scene train-restorer ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train-restorer", *sys.argv[1:]]))
