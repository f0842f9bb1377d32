"""Every error that a user can cause is one or two sentences and exit code 1 or 2, on every command."""

import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate_processes import forget_processes
from drawn_sets import build_drawn
from hydra.core.global_hydra import GlobalHydra
from scripts_here import SHIPPED, TINY

from face2scene.cli import main
from face2scene.cli.options import COMMANDS
from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.arrays import write_png

PHOTO = ["restore", "photo.png", "-o", "out", "faces=none", SHIPPED]
FADEX = ["train-fadex", *TINY, "name=run"]
RESTORER = ["train-restorer", *TINY, "mapnet=tiny", "restorer=tiny", "name=run", SHIPPED]
WEIGHTS = REPOSITORY / "checkpoints/tiny/fadex.safetensors"
OTHERS = ("quickstart", "rehearse", "fetch", "doctor", "data", "explain", "completion")
ACTIONS = ("data verify", "data pack")
# of what was tried: they do not stop the corrected command
RECORDS = {"config.yaml", "commit.txt", "log.txt", "baseline.json", "base.json", "restore.jsonl", ".lock"}
# command line -> a part of what is said
CASES = [
    (["nothing"], "face2scene has no nothing"),
    (["restore", "-o", "out"], "input=... is missing"),
    (["restore", "no.png", "-o", "out"], "nothing at input=no.png"),
    (["restore", "photo.png", "restorer.base.source=no"], "does not read restorer.base.source"),
    (["app", "mapnet.grids=[1]"], "does not read mapnet.grids"),
    (["restore", "text.png", "-o", "out", "faces=none", SHIPPED], "text.png cannot be read as an image"),
    (["restore", "photo.png", "-r", "no", "-o", "out"], "nothing at references=no"),
    ([*PHOTO, "limit=0"], "limit is a whole number from 1 on"),
    ([*PHOTO, "--scale", "0"], "scale is a number above 0"),
    ([*PHOTO, "seed=-1"], "seed is a whole number from 0 to"),
    ([*PHOTO, "device=abacus"], "device=abacus cannot be used here"),
    ([*PHOTO, "pipeline.max_faces=0"], "max_faces is a whole number from 1 on"),
    ([*PHOTO, "--fidelity", "2"], "fidelity is a number from 0 to 1"),
    ([*PHOTO, "restorer_weights=no"], "no"),
    ([*PHOTO, "seed=1.5"], "seed is a whole number"),
    ([*PHOTO, "restorer.base.dtype=fp33"], "did you mean fp32?"),
    (["app", "port=99999", "faces=none", "ref_fr=none", SHIPPED], "port=99999 does not exist"),
    (["app", "input=photo.png"], "The page does not use input"),
    (["eval"], "Say one of"),
    (["eval", "no", "--gt", "photos"], "no folder no"),
    (["eval", "photos", "--metrics", "beauty"], "beauty"),
    (["eval", "--table", "77"], "77"),
    (["eval", "photos", "--gt", "photos", "device=abacus"], "device=abacus cannot be used here"),
    (["eval", "compare=[a,b]"], "a/scores.json"),
    (["build-inscene", "data=inscene"], "is a mix of sets"),
    (["build-inscene", "data=tiny", "faces=none", "data.photos=no"], "no"),
    (["train-fadex"], "There is no InScene set in data/quickstart"),
    ([*FADEX, "train.fadex.schedule.decay=sudden"], "sudden"),
    ([*FADEX, "train.fadex.gt_share=2"], "gt_share is a number from 0 to 1"),
    ([*FADEX, "fadex.contrast={queue_size: 1.5}"], "fadex.contrast.queue_size is a whole number"),
    ([*FADEX[:-1], "name=null"], "name is a text, and 'null' was given"),
    ([*RESTORER, "fadex_weights=no"], "no"),
    ([*RESTORER, "mapnet.grids=[]"], "mapnet.grids is a list with an entry"),
    ([*RESTORER, "train.restorer.batches.batch=0"], "batch is a whole number from 1 on"),
    ([*RESTORER, f"fadex_weights={WEIGHTS}", "train.restorer.batches.crop=7"], "it must be a multiple of 2"),
    (["build-inscene", "data=tiny", "data.photos_split=foo"], "one of train, val, test"),
    (["build-inscene", "data=tiny", "data.size=0"], "data.size is a whole number from 1 on"),
    (["precompute-ref-fr", "recipes=0"], "recipes is a whole number from 1 on"),
    (["eval", "batch_pixels=0"], "batch_pixels is a whole number from 1 on"),
    (["precompute-ref-fr", "ref_fr=copy", "data=tiny"], "ref_fr=copy cannot be cached"),
    (["precompute-ref-fr", "ref_fr=faceme_tiny", "data=tiny", "splits=[all]"], "There is no split 'all'"),
    (["run-baseline", "baseline=nobody"], "There is no baseline=nobody"),
    (["run-baseline", "baseline=bicubic", "input=no"], "no"),
    (["sweep", "sweep=cgf"], "did you mean cfg?"),
    (["sweep", "use.fadex=nope", "--dry-run"], "no weights at use.fadex=nope"),
    (["sweep", "submit=slrum"], "did you mean slurm?"),
    (["sweep", "launch=no"], "no file of accelerate at launch=no"),
    (["sweep"], "There is no InScene set in data/quickstart"),
    (["redegrade", "-o", "out"], "data/quickstart"),
    (["calibrate-faces", "faces=opn"], "did you mean open?"),
    (["export", "dtype=fp33"], "did you mean fp32?"),
    (["export", "-o", "out", "parts=[cake]"], "no part 'cake'"),
    (["train-tiny-base", "text=no", "fadex_weights=no"], ""),
    (["quickstart", "--data"], "quickstart has no --data"),
    (["rehearse", "--card", "a600"], "did you mean a6000?"),
    (["rehearse", "--gpus", "0"], "--gpus is at least 1"),
    (["fetch"], "--all-open"),
    (["fetch", "yunt"], "yunet"),
    (["doctor", "now"], "doctor has no now"),
    (["data", "verify", "no"], "no"),
    (["data", "pack", "no", "out"], "no"),
    (["data", "pack", "data/tiny", "out", "--per-shard", "0"], "--per-shard is 0"),
    (["explain", "no"], "no"),
    (["explain", "text.png"], "text.png"),
    (["completion", "tcsh"], "completion has no tcsh"),
    # a folder without images, a file in a folder's place, broken weights
    (["restore", "empty", "-o", "out"], "empty"),
    (["restore", "photo.png", "-r", "empty", "-o", "out", "faces=none", SHIPPED], "empty"),
    ([*PHOTO[:2], "-o", "text.png", *PHOTO[4:]], "text.png"),
    ([*PHOTO, "restorer_weights=weights/cut.safetensors"], "cut.safetensors"),
    ([*PHOTO, "restorer_weights=text.png"], "text.png"),
    ([*PHOTO, f"restorer_weights={WEIGHTS}"], "fadex.safetensors"),
    ([*PHOTO, "fadex_weights=weights/cut.safetensors"], "cut.safetensors"),
    (["app", "restorer_weights=weights/cut.safetensors", "faces=none", "ref_fr=none", SHIPPED], "cut.safetensors"),
    (["app", "readout.heads=weights/cut.safetensors", "faces=none", "ref_fr=none", SHIPPED], "cut.safetensors"),
    (["eval", "empty", "--gt", "photos"], "empty"),
    (["eval", "photos", "--gt", "empty"], "empty"),
    (["eval", "text.png", "--gt", "photos"], "text.png"),
    (["eval", "photos"], "gt"),
    (["eval", "probe=fadex", "probe.weights=weights/cut.safetensors"], "cut.safetensors"),
    (["eval", "report=gallery", "methods=[empty]", "gt=photos"], "empty"),
    (["eval", "figure=6"], ""),
    (["build-inscene", "data=tiny", "faces=none", "data.photos=empty", "data.root=new"], "empty"),
    (["build-inscene", "data=tiny", "data.root=text.png"], "text.png"),
    ([*FADEX, "data.root=empty"], "empty"),
    ([*RESTORER, "fadex_weights=weights/cut.safetensors"], "cut.safetensors"),
    ([*RESTORER, f"fadex_weights={WEIGHTS}", "init_from=text.png"], "text.png"),
    ([*RESTORER, f"fadex_weights={WEIGHTS}", "restorer.base.source=empty"], "empty"),
    (["precompute-ref-fr", "data=tiny", "data.root=empty", "ref_fr=faceme_tiny"], "empty"),
    (["run-baseline", "baseline=bicubic", "input=empty"], "empty"),
    (["run-baseline", "import_only=no", "input=photos"], "no"),
    (["run-baseline", "import_only=empty", "input=photos"], "empty"),
    (["redegrade", "data.root=empty", "-o", "out"], "empty"),
    (["redegrade", "data=tiny", "-o", "text.png"], "text.png"),
    (["export", "restorer_weights=weights/cut.safetensors", "-o", "out"], "cut.safetensors"),
    (["export", f"restorer_weights={WEIGHTS}", "-o", "out"], "fadex.safetensors"),
    (["export", "-o", "text.png", SHIPPED], "text.png"),
    (["train-tiny-base", "init_from=no"], "no"),
    (["sweep", "sweep=cfg", "experiment=nothing"], "nothing"),
    (["rehearse", "experiment=nothing"], "nothing"),
    (["rehearse", "train.restorer.lr=fast"], "train.restorer.lr"),
    (["fetch", "yunet", "--from", "no"], "no"),
    (["data", "verify", "text.png"], "text.png"),
    (["data", "verify", "empty"], "empty"),
    (["data", "pack", "empty", "packed"], "empty"),
    (["explain", "empty"], "empty"),
    (["explain", "weights/cut.safetensors"], "cut.safetensors"),
    *(([name, "no_such_key=1"], "no_such_key") for name in (*COMMANDS, "rehearse")),
    # a misspelt option is answered before what is missing
    *(([*name.split(), "--no-such-option"], "has no --no-such-option") for name in (*COMMANDS, *OTHERS, *ACTIONS)),
    # empty values, which would be the current folder, and values that a number, a list or a name cannot have
    (["restore", "", "-o", "out"], "input is given without a value"),
    (["restore", "photo.png", "", "-o", "out"], "input is given without a value"),
    ([*PHOTO, "restorer_weights="], "restorer_weights is given without a value"),
    ([*PHOTO, "device="], "device is given without a value"),
    ([*PHOTO, "seed==1"], "seed is a whole number"),
    ([*PHOTO, "pipeline.tile=-1"], "pipeline.tile is a whole number from 1 on"),
    ([*PHOTO, "pipeline.fidelity=2"], "pipeline.fidelity is a number from 0 to 1, and '2'"),
    ([*PHOTO, "pipeline.max_tokens=[]"], "a list with an entry at least"),
    (["eval", "complexity=tiny", "cost.sizes=[-64]"], "cost.sizes is a list of whole numbers from 1 on"),
    (["eval", "photos", "name=null"], "name is a text, and 'null' was given"),
    ([*PHOTO, "dtype=fp8"], "dtype is one of fp32, bf16, fp16"),
    ([*FADEX, f"seed={2**32}"], "seed is a whole number from 0 to 4294967295"),
    ([*FADEX, "train.fadex.workers=100000"], "from 0 to 1024"),
    ([*FADEX[:-1], "name=.."], "name=.. is no folder of its own"),
    ([*FADEX[:-1], "name=/"], "name=/ is no folder of its own"),
    # a file where a folder is expected and the reverse
    ([*PHOTO[:2], "-o", "text.png/out", *PHOTO[4:]], "text.png"),
    ([*PHOTO, "gt=text.png"], "gt=text.png is no folder"),
    ([*PHOTO, "restorer_weights=empty"], "no restorer weights at empty"),
    ([*FADEX, "paths.runs=text.png"], "text.png"),
    (["precompute-ref-fr", "data=tiny", "degradation=tiny", "ref_fr=faceme_tiny", "cache=text.png"], "text.png"),
    (["precompute-ref-fr", "data=tiny", "ref_fr=external"], "ref_fr.command=... is missing"),
    (["precompute-ref-fr", "data=tiny", "ref_fr=none"], "ref_fr=none cannot be cached"),
    (["export", "-o", "text.png/out", SHIPPED], "Nothing can be written to text.png/out"),
    (["eval", "photos", "--gt", "photos", "paths.runs=text.png"], "Nothing can be written to text.png"),
    (["rehearse", "--json", "empty"], "--json=empty is a folder"),
    (["explain", "photo.png"], "photo.png has no record"),  # beside a folder named as weights
    (["explain", ""], "a path is needed"),
    (["data", "verify", ""], "a path is needed"),
    (["rehearse", "paper"], "'paper' is no option of face2scene rehearse"),
    (["rehearse", "--only", "cake"], "has no cake: choose fadex"),
    # of Stage I, told before anything is loaded
    ([*PHOTO, "ref_fr=faceme", "ref_fr.base=no"], "nothing at no (ref_fr.base)"),
    ([*PHOTO, "ref_fr=faceme", "ref_fr.vae_dtype=float9"], "ref_fr.vae_dtype is one of float16"),
    ([*PHOTO, "ref_fr=real_esrgan", "ref_fr.device=abacus"], "ref_fr.device=abacus cannot be used here"),
    ([*RESTORER, f"fadex_weights={WEIGHTS}", "restorer.base.dtype=half"], "restorer.base.dtype is one of fp32"),
    # configurations of one's own that are no YAML, or not in UTF-8
    ([*PHOTO, "--config-dir", "mine", "experiment=brackets"], "brackets.yaml is not YAML: line"),
    ([*PHOTO, "--config-dir", "mine", "experiment=latin"], "not in UTF-8"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a photo, a file that is none, and a small set."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("photo", "photos/a"):
        write_png(folder / f"{name}.png", np.full((48, 48, 3), 0.5, np.float32))
    (folder / "text.png").write_text("no image")
    (folder / "empty").mkdir()
    for name in ("weights", "named.safetensors"):
        (folder / name).mkdir()
    (folder / "mine/experiment").mkdir(parents=True)
    (folder / "mine/experiment/brackets.yaml").write_text("# @package _global_\nseed: [1\n")
    (folder / "mine/experiment/latin.yaml").write_bytes("# @package _global_\n# é\nseed: 1\n".encode("latin-1"))
    (folder / "weights/cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:20_000])
    build_drawn(folder / "data/tiny")
    return folder


def test_every_command_has_a_case():
    assert {words[0] for words, _ in CASES} >= {*COMMANDS, *OTHERS}


@pytest.mark.parametrize(
    ("words", "said"), CASES, ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else ""
)
def test_errors_are_sentences(words, said, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", [])
    GlobalHydra.instance().clear()
    forget_processes()
    before = {*place.rglob("*")}
    try:
        code = main.main(words)
    except SystemExit as end:
        code = end.code
    finally:
        forget_processes()
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line and "%|" not in line]
    assert code in (1, 2), lines
    assert 1 <= len(lines) <= 2 and len(lines[-1]) < 600 and said in " ".join(lines), lines
    written = {path.name for path in {*place.rglob("*")} - before if path.is_file() and "face_crops" not in path.parts}
    assert written <= RECORDS
