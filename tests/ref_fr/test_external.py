"""Somebody else's program as Stage I."""

import shlex
import sys
import time

import pytest
import torch
from fake_ref_fr import faces

from face2scene.ref_fr import FaceRestorationError
from face2scene.ref_fr.base import RestorerUnavailableError
from face2scene.ref_fr.external import External

PROGRAM = """
import sys, pathlib
from PIL import Image, ImageOps
source, references, target = map(pathlib.Path, sys.argv[1:4])
assert len(list(references.iterdir())) == int(sys.argv[4])
for path in sorted(source.glob("*.png")):
    (target / "out").mkdir(exist_ok=True)
    ImageOps.invert(Image.open(path)).save(target / "out" / (path.stem + "_r.png"))
    sys.argv[5:] and exec(sys.argv[5])
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)

    def make(count: int, spoil: str = "", **options) -> External:
        command = f"{sys.executable} {path} {{input}} {{references}} {{output}} {count}"
        options = {"version": "1", "outputs": "out/{stem}_r.png", "size": 32} | options
        return External(f"{command} {shlex.quote(spoil)}" if spoil else command, **options)

    return make


def test_external_program_restores_faces(program, photo_files):
    images = faces(3)
    result = program(2).restore_aligned(images, [photo_files] * 3)
    assert all(torch.allclose(m.image, 1 - f, atol=1e-6) for m, f in zip(result, images, strict=True))
    assert len({program(2).fingerprint, program(3).fingerprint, program(2, version="2").fingerprint}) == 3


RESULT = 'target / "out" / (path.stem + "_r.png")'


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (f"({RESULT}).unlink(); print('out of memory')", "no face_0000_r.png was left .*out of memory"),
        (f"({RESULT}).unlink(); sys.exit('no GPU')", "failed and left nothing .*code 1, last line: no GPU"),
        (f"({RESULT}).write_text('no')", "face_0000_r.png cannot be read"),
        (f"Image.new('RGB', (16, 32)).save({RESULT})", "is 16 x 32 and should be 32 x 32"),
        (f"Image.new('RGB', (32, 32)).save({RESULT})", "one colour all over"),
    ],
)
def test_bad_program_output_raises(program, photo_files, spoil, reason):
    with pytest.raises(FaceRestorationError, match=reason):
        program(2, spoil).restore_aligned(faces(1), [photo_files])


def test_hanging_or_missing_program_raises(program, photo_files):
    start = time.monotonic()
    with pytest.raises(FaceRestorationError, match="longer than 1 s"):
        program(2, "import time; time.sleep(60)", timeout=1).restore_aligned(faces(1), [photo_files])
    assert time.monotonic() - start < 20
    slow = "if path.stem.endswith('1'):\n    import time; time.sleep(60)"
    with pytest.raises(RestorerUnavailableError, match="longer than 3 s"):  # the restorer fails, which is not cached
        program(2, slow, timeout=3).restore_aligned(faces(2), [photo_files] * 2)
    with pytest.raises(FaceRestorationError, match="no_such_program cannot be run"):
        External("no_such_program {input} {output}", version="1", size=32).restore_aligned(faces(1), [photo_files])
    with pytest.raises(ValueError, match="has to hold"):
        External("program", version="1")


def test_instantrestore_folder_layout(tmp_path, photo_files):
    listing = tmp_path / "listing.txt"
    script = tmp_path / "s.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        "source, target = map(pathlib.Path, sys.argv[1:3])\n"
        "names = sorted(str(p.relative_to(source)) for p in source.rglob('*.png'))\n"
        f"pathlib.Path({str(listing)!r}).write_text(' '.join(names))\n"
        "[shutil.copy(d / 'degraded.png', target / f'{d.name}.png') for d in source.iterdir()]\n"
    )
    adapter = External(
        f"{sys.executable} {script} {{input}} {{output}}", version="1", layout="identity", references=4, size=32
    )
    image = faces(1)
    assert torch.equal(adapter.restore_aligned(image, [photo_files])[0].image, image[0])
    conditioning = [f"face_0000/conditioning/reference_{n:02d}.png" for n in range(4)]
    assert listing.read_text().split() == [*conditioning, "face_0000/degraded.png", "face_0000/gt.png"]
    with pytest.raises(FaceRestorationError, match="needs references"):
        adapter.restore_aligned(image, [[]])
