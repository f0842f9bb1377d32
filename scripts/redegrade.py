"""`python scripts/redegrade.py ...` is `face2scene redegrade ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["redegrade", *sys.argv[1:]]))
