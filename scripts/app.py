"""`python scripts/app.py ...` is `face2scene app ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
