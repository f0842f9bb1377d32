"""Stage I by somebody else's program: folders in, a command, a folder out; nothing is believed that was not checked."""

import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from face2scene.images import ImageError, nothing_in, read_tensor, write_png
from face2scene.ledger import content
from face2scene.ref_fr import base
from face2scene.ref_fr.base import AlignedRefFR, RestoredFace, StageOneError, StageOneFailure, in_bytes
from face2scene.ref_fr.versions import code_version, digest

log = logging.getLogger(__name__)
LAYOUTS = ("flat", "identity")
_FIELDS = ("input", "references", "output")


class External(AlignedRefFR):
    """A command that turns a folder of aligned faces and a folder of references into restored faces.

    Faces of one person go to one launch, as PNG files of unique names in a fresh folder that holds nothing else.
    `flat`: {input}/face_0000.png ..., and the references in {references}. `identity` (InstantRestore's): a folder
    {input}/face_0000/ with degraded.png, gt.png (the degraded face again, since nobody knows the truth) and
    conditioning/ with the references.

    Args:
        command: with {input}, {references} and {output}; split as a shell would, but run without one.
        version: your name for its weights and settings; a cache of its faces is keyed by it and by the command.
        name: for logs.
        layout: `flat` or `identity`.
        outputs: where a restored face is below {output}; {stem} is the face's name.
        folder: to run the command in; None is the present one.
        timeout: seconds for one launch.
        size: side of the aligned faces.
        references: so many are staged, taken again from the first when there are fewer; 0 stages what there are.

    Raises:
        ValueError: a template without its fields, or an unknown layout.
    """

    def __init__(
        self,
        command: str,
        *,
        version: str,
        name: str = "external",
        layout: str = "flat",
        outputs: str = "{stem}.png",
        folder: str | None = None,
        timeout: float = 3600,
        size: int = 512,
        references: int = 0,
    ):
        if "{input}" not in command or "{output}" not in command:
            raise ValueError(f"ref_fr.command {command!r} has to hold {{input}} and {{output}}.")
        if "{stem}" not in outputs or layout not in LAYOUTS:
            raise ValueError(f"ref_fr.outputs has to hold {{stem}}, and ref_fr.layout is one of {', '.join(LAYOUTS)}.")
        self.command, self.version, self.name, self.layout, self.outputs = command, version, name, layout, outputs
        self.folder, self.timeout, self.size, self.references = folder, timeout, size, references

    @cached_property
    def fingerprint(self) -> str:
        names = ("command", "version", "name", "layout", "outputs", "size", "references")
        settings = json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)
        return digest(settings, code_version(sys.modules[__name__], base))

    def restore_aligned(self, faces: Tensor, references: Sequence[Sequence[Path]]) -> list[RestoredFace]:
        """See `AlignedRefFR`.

        Raises:
            StageOneError: the command leaves a face missing, unreadable, of another size or without any detail.
            StageOneFailure: the command is not there, takes too long, or fails and leaves nothing.
        """
        people: dict[tuple[str, ...], list[int]] = {}
        for number, paths in enumerate(references):
            people.setdefault(tuple(content(path) for path in paths), []).append(number)
        made: dict[int, RestoredFace] = {}
        for rows in people.values():
            for number, image in zip(rows, self._launch(faces[rows], references[rows[0]]), strict=True):
                made[number] = RestoredFace(image)
        return [made[number] for number in range(len(faces))]

    def _launch(self, faces: Tensor, references: Sequence[Path]) -> list[Tensor]:
        with tempfile.TemporaryDirectory(prefix="face2scene_") as scratch:
            places = {name: Path(scratch) / name for name in _FIELDS}
            for place in places.values():
                place.mkdir()
            stems = [f"face_{number:04d}" for number in range(len(faces))]
            self._stage(places, dict(zip(stems, faces, strict=True)), references)
            words = [word.format(**places) for word in shlex.split(self.command)]
            code, said = self._run(words)
            results = [places["output"] / self.outputs.format(stem=stem) for stem in stems]
            if code and not any(path.is_file() for path in results):
                raise StageOneFailure(f"ref_fr={self.name} failed and left nothing ({said})")
            return [self._result(path, said) for path in results]

    def _stage(self, places: dict[str, Path], faces: dict[str, Tensor], references: Sequence[Path]) -> None:
        if self.references and not references:
            raise StageOneError(f"ref_fr={self.name} needs references and got none (references=FOLDER)")
        count = self.references or len(references)
        people = {f"reference_{n:02d}.png": read_tensor(references[n % len(references)]) for n in range(count)}
        for stem, face in faces.items():
            if self.layout == "flat":
                write_png(places["input"] / f"{stem}.png", face)
                continue
            for name in ("degraded", "gt"):
                write_png(places["input"] / stem / f"{name}.png", face)
            for name, picture in people.items():
                write_png(places["input"] / stem / "conditioning" / name, picture)
        if self.layout == "flat":
            for name, picture in people.items():
                write_png(places["references"] / name, picture)

    def _run(self, words: Sequence[str]) -> tuple[int, str]:
        """Exit code and last words; a bad code is only believed when nothing came out."""
        try:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise StageOneFailure(f"ref_fr={self.name}: {words[0]} cannot be run ({error.strerror})") from error
        try:
            output, _ = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired as error:
            os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.communicate()
            raise StageOneFailure(
                f"ref_fr={self.name} took longer than {self.timeout:g} s and was ended (ref_fr.timeout)"
            ) from error
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        last = lines[-1][:200] if lines else "it said nothing"
        if process.returncode:
            log.warning("ref_fr=%s ended with code %d: %s", self.name, process.returncode, last)
        return process.returncode, f"exit code {process.returncode}, last line: {last}"

    def _result(self, path: Path, said: str) -> Tensor:
        if not path.is_file():
            raise StageOneError(f"ref_fr={self.name} left no {path.name} ({said})")
        try:
            image = in_bytes(read_tensor(path))
        except ImageError as error:
            raise StageOneError(f"ref_fr={self.name} left an unreadable {path.name} ({said})") from error
        if image.shape != (3, self.size, self.size):
            width, height = image.shape[-1], image.shape[-2]
            raise StageOneError(
                f"ref_fr={self.name} made {path.name} {width} x {height}, not {self.size} x {self.size}"
            )
        if nothing := nothing_in(image):
            raise StageOneError(f"ref_fr={self.name} made {path.name} {nothing}, which is how NaN looks ({said})")
        return image
