"""Stage I by an external program: a command from input folders to an output folder, whose images are validated."""

import json
import logging
import shlex
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from torch import Tensor

from face2scene.common.choices import one_of
from face2scene.common.ledger import content
from face2scene.common.processes import ProcessResult, run_group
from face2scene.image_io.arrays import nothing_in
from face2scene.ref_fr import base
from face2scene.ref_fr.base import AlignedRefFR, FaceRestorationError, RestoredFace, RestorerUnavailableError, in_bytes
from face2scene.ref_fr.external_programs import LAYOUTS, read_result, stage_input, stage_references
from face2scene.ref_fr.fingerprint import code_version, digest

log = logging.getLogger(__name__)
_FIELDS = ("input", "references", "output")


class External(AlignedRefFR):
    """A command that restores a folder of aligned faces with a folder of references.

    All faces with the same references go to one launch, as PNG files in an empty folder, laid out by
    `external_programs.stage_input`; in the layout `flat` the references are in {references}.

    Args:
        command: with {input}, {references} and {output}; split like a shell command, but run without a shell.
        version: identifies its weights and settings; part of the cache's fingerprint, as is the command.
        name: for logs.
        layout: `flat` or `identity`.
        outputs: path of a restored face below {output}; {stem} is the face's name.
        folder: working directory of the command; None is the current one.
        timeout: seconds for one launch.
        size: side of the aligned faces.
        references: number of staged references, repeated from the first when there are fewer; 0 stages all.

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
        if "{stem}" not in outputs:
            raise ValueError(f"ref_fr.outputs {outputs!r} has to hold {{stem}}.")
        one_of("ref_fr.layout", layout, LAYOUTS)
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
            FaceRestorationError: an output is missing, unreadable, of another size or uniform.
            RestorerUnavailableError: the command does not exist, takes too long, or fails without output.
        """
        people: dict[tuple[str, ...], list[int]] = {}
        for number, paths in enumerate(references):
            people.setdefault(tuple(content(path) for path in paths), []).append(number)
        restored: dict[int, RestoredFace] = {}
        for rows in people.values():
            for number, image in zip(rows, self._launch(faces[rows], references[rows[0]]), strict=True):
                restored[number] = RestoredFace(image)
        return [restored[number] for number in range(len(faces))]

    def _launch(self, faces: Tensor, references: Sequence[Path]) -> list[Tensor]:
        if self.references and not references:
            raise FaceRestorationError(f"ref_fr={self.name} needs references and got none (references=FOLDER)")
        with tempfile.TemporaryDirectory(prefix="face2scene_") as scratch:
            places = {name: Path(scratch) / name for name in _FIELDS}
            for place in places.values():
                place.mkdir()
            stems = [f"face_{number:04d}" for number in range(len(faces))]
            count = self.references
            for stem, face in zip(stems, faces, strict=True):
                stage_input(places["input"], stem, face, layout=self.layout, references=references, count=count)
            if self.layout == "flat":
                stage_references(references, places["references"], count)
            words = [word.format(**places) for word in shlex.split(self.command)]
            result = run_group(words, log=Path(scratch) / "log.txt", folder=self.folder, timeout=self.timeout)
            outputs = [places["output"] / self.outputs.format(stem=stem) for stem in stems]
            if result.code is None or result.timed_out:
                reason = f"{result.last_line} (ref_fr.command, ref_fr.timeout)"
                raise RestorerUnavailableError(f"ref_fr={self.name}: {reason}")
            if result.code and not any(path.is_file() for path in outputs):
                raise RestorerUnavailableError(f"ref_fr={self.name} failed and left nothing ({result})")
            if result.code:
                log.warning("ref_fr=%s: %s", self.name, result)
            return [self._output(path, result) for path in outputs]

    def _output(self, path: Path, result: ProcessResult) -> Tensor:
        image, reason = read_result(path, (self.size, self.size))
        if image is not None and (nothing := nothing_in(image)):
            image, reason = None, f"{path.name} is {nothing}, as an image of NaN is"
        if image is None:
            raise FaceRestorationError(f"ref_fr={self.name}: {reason} ({result})")
        return in_bytes(image)
