"""`python scripts/calibrate_faces.py ...` is `face2scene calibrate-faces ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["calibrate-faces", *sys.argv[1:]]))
