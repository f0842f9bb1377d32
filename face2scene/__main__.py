"""`python -m face2scene`, the same as the command `face2scene`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
