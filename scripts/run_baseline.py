"""`python scripts/run_baseline.py ...` is `face2scene run-baseline ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run-baseline", *sys.argv[1:]]))
