"""The web page with a restoration that takes a minute and needs no weights."""

import time
from pathlib import Path

import numpy as np
from PIL import Image

from face2scene.cli.app import AppController, build, launch
from face2scene.cli.visitors import VisitorLeft

SLOW = 600  # steps of 0.1 s


class SlowPage(AppController):
    """A page whose restoration takes a minute of steps for a photo named slow.png, else nothing."""

    steps = 0

    def __init__(self):
        super().__init__(None)

    def find_faces(self, photo, references):
        return None, ""

    def restore(self, photo, references, guidance, scale, progress):
        for step in range(SLOW if photo.endswith("slow.png") else 1):
            progress(step / SLOW, "waiting")
            if self.closed.is_set():
                raise VisitorLeft("closed")
            time.sleep(0.1)
            self.steps += 1
        path = self.folder / "result.png"
        Image.new("RGB", (8, 8)).save(path)
        image = np.zeros((8, 8, 3), np.uint8)
        return (image, []), "", (image, image), [], [], {}, str(path)


def serve(port: int, told: Path) -> None:
    """Serve the page at `port` until a signal; its folder of uploads is written to `told`."""
    page = SlowPage()
    told.write_text(str(page.folder))
    launch(build(page, guidance=1.1), host="127.0.0.1", port=port, waiting=2, largest_mb=1)
