"""The web page as a Hugging Face Space: fetches the detector and a Stage I once, then serves on all addresses."""

import os
import sys

from face2scene.cli.main import main

ASSETS = ("yunet", "dlib", "real_esrgan_x4plus")  # their licences: face2scene fetch --list
OPTIONS = ("host=0.0.0.0", "port=7860", "max_pixels=4000000", "waiting=8")

if __name__ == "__main__":
    if code := main(["fetch", *os.environ.get("FACE2SCENE_FETCH", " ".join(ASSETS)).split()]):
        sys.exit(code)
    sys.exit(main(["app", *OPTIONS, *sys.argv[1:]]))
