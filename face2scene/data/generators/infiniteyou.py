"""The paper's generator, InfiniteYou on FLUX.1-dev, in a process of its own interpreter.

Its pins (torch 2.6, diffusers 0.31, numpy 1.26) and ours cannot share an environment, it exits on errors, and it
downloads 43 GB when a path is wrong. So a worker process takes requests as lines of JSON; paths and licences are
checked before it starts, the hub is offline, and a worker that dies or hangs is replaced and gets its request again.
"""

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from face2scene.data.generators.base import GenerationRequest, GeneratorError, JobFailed

WORKER = Path(__file__).parent / "infiniteyou_worker.py"
LICENCES = {
    "infiniteyou": "InfiniteYou's weights: CC BY-NC 4.0",
    "flux.1-dev": "FLUX.1-dev: FLUX.1 [dev] Non-Commercial License, gated",
    "insightface": "antelopev2: non-commercial research only",
}


@dataclass(kw_only=True, eq=False)
class InfiniteYou:
    """Generates the person of a reference photo in a prompted scene; defaults are those of the public generator."""

    python: str | Path | None  # the interpreter of InfiniteYou's environment
    repository: str | Path | None  # its checkout, with `pipelines/pipeline_infu_flux.py`
    model_dir: str | Path | None  # its weights: `infu_flux_v1.0/`, `supports/`
    base_model: str | Path | None  # folder of FLUX.1-dev in diffusers' layout
    accept_licences: Sequence[str] = ()  # must name every key of `LICENCES`
    version: str = "sim_stage1"  # the paper's, more similar; or `aes_stage2`
    lora_weight: float = 3.0  # of the AntiBlur LoRA, whose card recommends 1.0 to 1.5; 0 is without
    width: int = 1024
    height: int = 1152
    guidance: float = 3.5
    steps: int = 30
    conditioning_scale: float = 1.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    quantize_8bit: bool = False  # 43 GB of memory without, 24 with it,
    cpu_offload: bool = False  # 30 with this, 16 with both
    start_timeout_s: float = 1800
    job_timeout_s: float = 600  # a worker that takes longer is replaced
    retries: int = 2  # number of further workers that get a request before it fails
    log: str | Path | None = None  # for the worker's output; None is a temporary file
    environment: Mapping[str, str] = field(default_factory=dict)  # of the worker, over ours
    _worker: "_Worker | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.version not in ("sim_stage1", "aes_stage2"):
            raise GeneratorError(f"generator.version must be sim_stage1 or aes_stage2, not {self.version!r}.")
        paths = ("python", "repository", "model_dir", "base_model")
        self.unset = [option for option in paths if not getattr(self, option)]
        for option in paths:
            setattr(self, option, Path(getattr(self, option) or ""))
        self.call = {
            **{"width": self.width, "height": self.height, "guidance_scale": self.guidance, "num_steps": self.steps},
            "infusenet_conditioning_scale": self.conditioning_scale,
            "infusenet_guidance_start": self.guidance_start,
            "infusenet_guidance_end": self.guidance_end,
            "cpu_offload": self.cpu_offload,
        }
        self.starts = 0  # number of workers so far

    @property
    def _lora(self) -> Path:
        return self.model_dir / "supports/optional_loras/flux_anti_blur_lora.safetensors"

    def check(self) -> None:
        """Check paths and licences, without loading anything.

        Raises:
            GeneratorError: naming every missing path and every licence that was not accepted.
        """
        stage = self.model_dir / "infu_flux_v1.0" / self.version
        wanted = {
            "python": [self.python],
            "repository": [self.repository / "pipelines/pipeline_infu_flux.py"],
            "model_dir": [
                *(stage / "InfuseNetModel", stage / "image_proj_model.bin"),
                *(self.model_dir / "supports/insightface", *([self._lora] if self.lora_weight else [])),
            ],
            "base_model": [self.base_model / "model_index.json"],
        }
        missing = [f"generator.{option} is not set (data.infiniteyou.{option}=...)" for option in self.unset]
        missing += [
            f"generator.{option}: there is no {path}"
            for option, paths in wanted.items()
            for path in paths
            if option not in self.unset and not path.exists()
        ]
        if missing:
            raise GeneratorError(
                "\n  ".join(["InfiniteYou cannot start:", *missing])
                + "\nGet the code from bytedance/InfiniteYou, the weights with `hf download ByteDance/InfiniteYou` and "
                "`hf download black-forest-labs/FLUX.1-dev`."
            )
        unaccepted = [text for name, text in LICENCES.items() if name not in self.accept_licences]
        if unaccepted:
            raise GeneratorError(
                "InfiniteYou's parts come under terms that you must accept: " + "; ".join(unaccepted) + ". If you do: "
                f"generator.accept_licences=[{','.join(LICENCES)}]."
            )

    def about(self) -> dict[str, Any]:
        """Settings for the records."""
        return {"name": "infiniteyou", "version": self.version, "anti_blur": self.lora_weight, **self.call}

    def draw(self, request: GenerationRequest) -> np.ndarray:
        """uint8 (height, width, 3); see `base.Generator`."""
        if request.reference is None:
            raise GeneratorError("InfiniteYou needs a reference photo of the person.")
        reasons = []
        with tempfile.TemporaryDirectory() as place:
            output = Path(place) / "image.png"
            message = {"reference": str(Path(request.reference).resolve()), "output": str(output)}
            message |= {"prompt": request.prompt, "seed": request.seed}
            for _ in range(self.retries + 1):
                worker = self._running()
                try:
                    reply = worker.ask(message, self.job_timeout_s)
                except _WorkerLost as error:
                    reasons.append(str(error))
                    self.close()
                    continue
                if not reply["ok"]:
                    raise JobFailed(reply["error"])
                with Image.open(output, formats=["PNG"]) as image:
                    return np.asarray(image.convert("RGB"))
        raise JobFailed(f"{len(reasons)} workers in a row were lost with this job ({reasons[-1]})")

    def close(self) -> None:
        """End the worker, if there is one."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def __del__(self) -> None:
        self.close()

    def _running(self) -> "_Worker":
        if self._worker is None:
            self.check()
            self.starts += 1
            settings = {
                "pipeline": {
                    "base_model_path": str(self.base_model.resolve()),
                    "infu_model_path": str((self.model_dir / "infu_flux_v1.0" / self.version).resolve()),
                    "insightface_root_path": str((self.model_dir / "supports/insightface").resolve()),
                    "image_proj_num_tokens": 8,
                    "infu_flux_version": "v1.0",
                    "model_version": self.version,
                    **{"quantize_8bit": self.quantize_8bit, "cpu_offload": self.cpu_offload},
                },
                "loras": [[str(self._lora.resolve()), "anti_blur", self.lora_weight]] if self.lora_weight else [],
                "call": self.call,
            }
            self._worker = _Worker(self.python, self._environment(), self.repository, self.log)
            self._worker.start(settings, self.start_timeout_s)
        return self._worker

    def _environment(self) -> dict[str, str]:
        ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        ours |= {"PYTHONPATH": str(self.repository.resolve()), "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        # The pipeline always takes the first visible GPU: each rank's worker gets one.
        rank, gpus = os.environ.get("LOCAL_RANK"), os.environ.get("CUDA_VISIBLE_DEVICES")
        if rank is not None and gpus != "":
            ours["CUDA_VISIBLE_DEVICES"] = gpus.split(",")[int(rank) % len(gpus.split(","))] if gpus else rank
        return ours | dict(self.environment)


class _WorkerLost(RuntimeError):
    """The worker died, hung, or gave an invalid answer."""


class _Worker:
    """The worker process. A thread reads its answers, so that the wait for one can time out."""

    def __init__(self, python: Path, environment: dict, folder: Path, log: str | Path | None):
        # Its stderr goes to a file, whose last lines explain a failure.
        self.log = open(log, "ab+") if log else tempfile.TemporaryFile()  # noqa: SIM115  closed in end()
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([str(python), str(WORKER)], env=environment, cwd=folder, **pipes)
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.count = 0

    def _listen(self) -> None:
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def start(self, settings: dict[str, Any], timeout_s: float) -> None:
        try:
            reply = self._exchange(settings, timeout_s)
            if not reply.get("ready"):
                raise _WorkerLost(f"{reply.get('error')}{self._last_lines()}")
        except _WorkerLost as error:
            self.end()
            raise GeneratorError(f"InfiniteYou did not start: {error}.") from error

    def ask(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.count += 1
        reply = self._exchange({"id": self.count, **message}, timeout_s)
        if reply.get("id") != self.count:
            raise _WorkerLost(f"it answered request {reply.get('id')} when asked for {self.count}")
        return reply

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        with suppress(OSError):  # if it is dead, its answers end, see below
            self.process.stdin.write(json.dumps(message) + "\n")
        try:
            line = self.answers.get(timeout=timeout_s)
        except queue.Empty:
            raise _WorkerLost(f"it gave no answer in {timeout_s:g} s") from None
        if line is None:
            raise _WorkerLost(f"it ended with exit code {self.process.wait()}{self._last_lines()}")
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            raise _WorkerLost(f"it answered {line[:80]!r}") from None

    def _last_lines(self) -> str:
        self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, self.log.tell() - 2000))
        lines = [line for line in self.log.read().decode(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith((" ", "Traceback"))]  # messages, not tracebacks
        return f"; its last lines: {' | '.join(lines[-3:])}" if lines else ""

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.log):
            with suppress(OSError):
                stream.close()
