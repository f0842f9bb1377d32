"""`python scripts/build_inscene.py ...` is `face2scene build-inscene ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["build-inscene", *sys.argv[1:]]))
