"""`python scripts/precompute_ref_fr.py ...` is `face2scene precompute-ref-fr ...`."""

import sys

from face2scene.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["precompute-ref-fr", *sys.argv[1:]]))
