"""The pictures of the README and of docs/, from what ships: `python scripts/draw_docs.py [PICTURE ...]`.

    teaser       docs/images/teaser.jpg: degraded photo, the face pair, restored photo, ground truth; by the weights of
                 restore, and of people who are held out of their training
    restoring    docs/images/restoring.svg: the method as an animation (photo, face, pair, restored photo), with tiny's
                 weights, whose restorer reads the tokens
    examples     face2scene/cli/examples/*.jpg: two of the degraded photos, for the web page; no weights
    page         docs/images/page.png: the web page in Chromium at 1280 pixels (pip install playwright), default weights

Without a name all but the page. Needs `face2scene fetch quickstart real_esrgan_x4plus` and the extra `quickstart`. The
photos: NASA's portrait of Eileen Collins (scikit-image), the official portrait of Barack Obama (both public domain),
and a generated person. The figures in the pictures are computed with them, so that new weights make new pictures with
their own figures.
"""

import argparse
import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFont

from face2scene.assets import catalogue
from face2scene.common.reproducibility import REPOSITORY
from face2scene.data.generators.base import GenerationRequest
from face2scene.data.generators.facegen import FaceGenerator
from face2scene.degradation import Blur, GaussianNoise, Jpeg, Recipe
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.image_io.arrays import to_array, to_tensor
from face2scene.image_io.metadata import OPENED
from face2scene.inference.pipeline import Face2ScenePipeline
from face2scene.inference.results import Restoration
from face2scene.ref_fr.no_reference import RealESRGAN

SIZE = 384  # pixels, of the restored squares
CELL, GAP, HEAD = 256, 8, 30  # of the teaser
INK, PAPER = (24, 26, 32), (255, 255, 255)
GENERATED_PERSON = 26  # of the quickstart's held-out people
DEGRADATION = Recipe((Blur("iso", 15, sigma_x=0.9), GaussianNoise(26.0), Jpeg(70)))  # a dark room, and an upload
EXAMPLES = ("astronaut", "generated")  # of the web page
PICTURES = ("teaser", "restoring", "examples", "page")
COLUMNS = ("degraded", "its face", "face restored", "photo restored", "ground truth")


@dataclass(frozen=True)
class Example:
    """A restored photo; images are uint8 (H, W, 3)."""

    name: str
    gt: np.ndarray
    degraded: np.ndarray
    result: Restoration

    def decibels(self, image: np.ndarray) -> str:
        error = np.square(image.astype(float) - self.gt).mean()
        return f"{10 * np.log10(255**2 / error):.1f} dB"

    @property
    def restored(self) -> np.ndarray:
        return _bytes(self.result.image)


def photos() -> dict[str, Image.Image]:
    """Squares of SIZE pixels by file name."""
    obama = Image.open(catalogue.folder("photos_face_recognition") / "obama.jpg", formats=OPENED).convert("RGB")
    side = min(obama.size)
    request = GenerationRequest(person=GENERATED_PERSON, number=0)
    squares = {
        "astronaut": Image.fromarray(skimage.data.astronaut()).crop((32, 0, 432, 400)),
        "portrait": obama.crop((0, 0, side, side)),
        "generated": Image.fromarray(FaceGenerator().draw(request)),
    }
    return {name: image.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for name, image in squares.items()}


def restorer(weights: str) -> Face2ScenePipeline:
    """Weights of checkpoints/, with Real-ESRGAN on half the face's size in Stage I's place."""
    parts = {"ref_fr": RealESRGAN(shrink=2), "detector": Detector(OpenBackend())}
    return Face2ScenePipeline.from_pretrained(REPOSITORY / "checkpoints" / weights, **parts)


def degraded_photos() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ground truth and degraded photo by name."""
    gts = {name: np.asarray(image) for name, image in photos().items()}
    recipes = (DEGRADATION.with_noise_seed(number) for number in range(len(gts)))
    return {name: (gt, _bytes(one.apply(to_tensor(gt)))) for (name, gt), one in zip(gts.items(), recipes, strict=True)}


def restored(weights: str, names: tuple[str, ...] = ()) -> list[Example]:
    """Restore the photos of these names, or all."""
    pipeline, found = restorer(weights), []
    for name, (gt, degraded) in degraded_photos().items():
        if name in names or not names:
            found.append(Example(name, gt, degraded, pipeline(degraded, name=name)))
            print(
                f"{name}: degraded {found[-1].decibels(degraded)}, {weights} {found[-1].decibels(found[-1].restored)}"
            )
    return found


def teaser(rows: list[Example]) -> Image.Image:
    """One row for each photo, with PSNR against the ground truth."""
    step = CELL + GAP
    sheet = Image.new("RGB", (len(COLUMNS) * step - GAP, HEAD + len(rows) * step - GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for column, title in enumerate(COLUMNS):
        draw.text((column * step + CELL / 2, HEAD / 2), title, INK, font, anchor="mm")
    for row, one in enumerate(rows):
        pair = one.result.estimate.pair
        assert pair is not None, f"no face was found in {one.name}: {one.result.notes}"
        cells = (one.degraded, _bytes(pair.degraded), _bytes(pair.restored), one.restored, one.gt)
        for column, cell in enumerate(cells):
            corner = column * step, HEAD + row * step
            sheet.paste(Image.fromarray(cell).resize((CELL, CELL), Image.Resampling.LANCZOS), corner)
            if column in (0, 3):
                text, at = one.decibels(cell), (corner[0] + CELL - 6, corner[1] + CELL - 6)
                draw.rectangle((at[0] - 70, at[1] - 20, *at), fill=(0, 0, 0))
                draw.text((at[0] - 35, at[1] - 10), text, PAPER, font, anchor="mm")
    return sheet


def animation(one: Example) -> str:
    """An SVG of 20 seconds that repeats: photo, face, pair, and the restored photo drawn over the degraded one."""
    pair, seconds = one.result.estimate.pair, 20
    x0, y0, x1, y1 = pair.box
    width, height, side = SIZE * 2 + 60, SIZE + 56, 150

    def picture(array: np.ndarray, x: float, y: float, size: float, attributes: str = "") -> str:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=86)
        data = base64.b64encode(file.getvalue()).decode()
        return (
            f'<image{attributes} x="{x:g}" y="{y:g}" width="{size:g}" height="{size:g}" '
            f'preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/>'
        )

    right = SIZE + 60 + (SIZE - side) / 2
    captions = (
        (0, 17, "a degraded photo"),
        (17, 34, "the face in it is found, and restored"),
        (34, 56, "the pair shows what the damage did: FaDeX reads it"),
        (56, 80, "the whole photo is restored with that reading"),
        (80, 100, "restored in one step"),
    )
    frames = "".join(
        f"@keyframes c{n}{{0%,{max(start - 1, 0)}%{{opacity:{int(start == 0)}}}{start}%,{end - 1}%{{opacity:1}}"
        f"{end}%,100%{{opacity:{int(end == 100)}}}}}#c{n}{{animation:c{n} {seconds}s infinite}}"
        for n, (start, end, _) in enumerate(captions)
    )
    style = (
        f"text{{font:17px system-ui,sans-serif;fill:#333}}"
        f"@keyframes box{{0%,16%{{opacity:0}}19%,100%{{opacity:1}}}}#box{{animation:box {seconds}s infinite}}"
        f"@keyframes low{{0%,20%{{opacity:0}}24%,100%{{opacity:1}}}}.low{{animation:low {seconds}s infinite}}"
        f"@keyframes high{{0%,28%{{opacity:0}}33%,100%{{opacity:1}}}}.high{{animation:high {seconds}s infinite}}"
        f"@keyframes read{{0%,38%{{opacity:0}}43%,100%{{opacity:1}}}}.read{{animation:read {seconds}s infinite}}"
        f"@keyframes wipe{{0%,58%{{width:0}}78%,100%{{width:{SIZE}px}}}}#wipe{{animation:wipe {seconds}s infinite}}"
        "#c0,#c1,#c2,#c3{opacity:0}@media (prefers-reduced-motion:reduce){*{animation:none!important}}" + frames
    )
    tokens = "".join(
        f'<rect x="{SIZE + 60 + 12 + n * 17:g}" y="{SIZE - 36:g}" width="12" height="28" rx="3" '
        f'fill="hsl({200 + 4 * n},55%,{38 + 2 * n}%)"/>'
        for n in range(21)
    )
    scale = SIZE / one.gt.shape[1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        "<title>From a degraded photo by its face to the restored photo</title>",
        f'<style>{style}</style><rect width="{width}" height="{height}" fill="#fff"/>',
        f'<clipPath id="cut"><rect id="wipe" width="{SIZE}" height="{SIZE}"/></clipPath>',
        picture(one.degraded, 0, 0, SIZE),
        f'<g clip-path="url(#cut)">{picture(one.restored, 0, 0, SIZE)}</g>',
        f'<rect id="box" x="{x0 * scale:g}" y="{y0 * scale:g}" width="{(x1 - x0) * scale:g}" '
        f'height="{(y1 - y0) * scale:g}" fill="none" stroke="#ffd600" stroke-width="3"/>',
        picture(_bytes(pair.degraded), right - 90, 20, side, ' class="low"'),
        picture(_bytes(pair.restored), right + 90, 20, side, ' class="high"'),
        f'<g class="low"><text x="{right - 90 + side / 2}" y="194" text-anchor="middle">as it is</text></g>',
        f'<g class="high"><text x="{right + 90 + side / 2}" y="194" text-anchor="middle">restored</text></g>',
        f'<g class="read"><text x="{SIZE + 72}" y="{SIZE - 80}">what it says about the damage:</text>'
        f'<text x="{SIZE + 72}" y="{SIZE - 54}">21 tokens</text>{tokens}</g>',
        *(
            f'<g id="c{n}"><text x="{width / 2}" y="{SIZE + 36}" text-anchor="middle">{text}</text></g>'
            for n, (_, _, text) in enumerate(captions)
        ),
    ]
    return "\n".join([*parts, "</svg>", ""])


def page(folder: Path, photo: np.ndarray) -> None:
    """Restore a photo on the web page in Chromium, and keep what is seen."""
    import shutil
    import socket
    import tempfile

    from playwright.sync_api import sync_playwright

    from face2scene.cli.app import AppController, build, launch
    from face2scene.models.fadex import Readout

    shipped = REPOSITORY / "checkpoints/fadex"
    readout = Readout(shipped / "fadex.safetensors", shipped / "readout.safetensors")
    pipeline = restorer("photo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    blocks = build(AppController(pipeline, readout), guidance=pipeline.restorer.guidance)
    address = launch(blocks, host="127.0.0.1", port=port, waiting=2, largest_mb=20, wait=False)
    with tempfile.TemporaryDirectory() as uploads, sync_playwright() as driver:
        file = Path(uploads) / "astronaut.png"
        Image.fromarray(photo).save(file)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(600_000)
        tab.goto(address)
        tab.set_input_files("#photo input[type=file]", str(file))
        tab.get_by_text("found.").first.wait_for()
        tab.click("#restore")
        tab.wait_for_selector("#slider img")
        tab.wait_for_function("() => !document.querySelector('#download')?.disabled")
        tab.wait_for_timeout(2000)
        shot = Image.open(io.BytesIO(tab.screenshot(full_page=True)), formats=OPENED).convert("RGB")
        shot.quantize(200, dither=Image.Dither.NONE).save(folder / "page.png", optimize=True)
        browser.close()
    blocks.close()


def _bytes(image: torch.Tensor) -> np.ndarray:
    return (to_array(image) * 255).round().astype(np.uint8)


def main() -> None:
    """Draw what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/images")
    parser.add_argument("pictures", nargs="*", choices=[*PICTURES, []], metavar="PICTURE", help=", ".join(PICTURES))
    arguments = parser.parse_args()
    wanted = arguments.pictures or PICTURES[:-1]
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if "teaser" in wanted:
        teaser(restored("photo")).save(arguments.out / "teaser.jpg", quality=88, optimize=True)
    if "restoring" in wanted:
        (arguments.out / "restoring.svg").write_text(animation(*restored("tiny", ("astronaut",))), encoding="utf-8")
    if "examples" in wanted:
        for name in EXAMPLES:
            degraded = degraded_photos()[name][1]
            Image.fromarray(degraded).save(REPOSITORY / f"face2scene/cli/examples/{name}.jpg", quality=90)
    if "page" in wanted:
        page(arguments.out, degraded_photos()["astronaut"][1])


if __name__ == "__main__":
    main()
