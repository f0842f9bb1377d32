"""`python scripts/restore.py ...` is `face2scene restore ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["restore", *sys.argv[1:]]))
