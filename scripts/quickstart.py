"""`python scripts/quickstart.py ...` is `face2scene quickstart ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["quickstart", *sys.argv[1:]]))
