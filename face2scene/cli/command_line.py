"""What all scripts share: options by Hydra, paths taken as they are, and errors of a user in one sentence."""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from face2scene.common.memory import keep_freed_memory
from face2scene.common.renamed_keys import keys_of, refuse_renamed
from face2scene.common.reproducibility import REPOSITORY

CONFIGS = REPOSITORY / "configs"
# Keys whose value is a path, and no expression of Hydra's grammar.
PATHS = frozenset(
    {"input", "output", "references", "truth", "predictions", "boxes", "dataset", "import_only", "scratch", "cache"}
    | {"restorer_weights", "fadex_weights", "base", "shipped", "init_from", "pictures", "tokenizer"}
    | {"paths.data", "paths.runs", "paths.shipped", "data.root", "data.photos", "data.collection", "probe.photos"}
    | {"use.fadex", "use.restorer", "use.s3diff", "readout.fadex", "readout.heads", "ref_fr.folder"}
    | {"baseline.checkout", "baseline.python"}
)
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch for tracebacks
_WORD = re.compile(r"(\+{0,2}(?P<key>[\w.]+))=(?P<value>.*)", re.DOTALL)
_ESCAPED = re.compile(r"(\\*)\$\{")


def script(
    config: str, *, required: Sequence[str] = (), level: int = logging.WARNING
) -> Callable[[Callable[[DictConfig], None]], Callable[..., None]]:
    """A script's `main`, of a function that carries out a composed configuration.

    What a user can cause (`is_user_error`) ends it with one sentence and exit code 1, Ctrl-C with 130. With Hydra's
    `-m`, every combination is run even if one fails, each into a sub-folder of `output`, else of `name`, that is named
    after its values. HYDRA_FULL_ERROR=1 shows the whole traceback.

    Args:
        config: root of configs/.
        required: keys that have to be given.
        level: of log lines that are shown.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[..., None]:
        @functools.wraps(task)
        def main(cfg: DictConfig | None = None) -> None:
            codes: list[int] = []
            job = functools.partial(_run, task, required=required, level=level, codes=codes)
            job.__module__ = config  # the name that Hydra gives the job
            try:
                if cfg is None:
                    _by_hydra(job, config)
                else:  # composed already
                    job(cfg)
            except Exception as error:
                if FULL_ERROR in os.environ or not is_user_error(error):
                    raise
                codes.append(_said(error))
            if any(codes):
                sys.exit(max(codes))

        return main

    return decorate


def _by_hydra(job: Callable[[DictConfig], None], config: str) -> None:
    typed = sys.argv[1:]
    refuse_renamed(word for word in typed if not word.startswith("-"))
    for file in _experiments(typed):
        refuse_renamed(keys_of(OmegaConf.to_container(OmegaConf.load(file))), source=str(file))
    sys.argv[1:] = path_values(typed)
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config)(job)()


def _run(
    task: Callable[[DictConfig], None], cfg: DictConfig, *, required: Sequence[str], level: int, codes: list[int]
) -> None:
    keep_freed_memory()
    logging.basicConfig(level=level, format="%(message)s")
    try:
        for key in required:
            if OmegaConf.is_missing(cfg, key):
                raise ValueError(f"{key}=... is missing: say it on the command line.")
        _own_folder(cfg)
        task(cfg)
    except KeyboardInterrupt:
        print("Stopped. What is there is whole; the same command goes on.", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:  # the other runs of a sweep are carried out all the same
        codes.append(end.code if isinstance(end.code, int) else _said(end) if end.code else 0)
    except Exception as error:
        if FULL_ERROR in os.environ or not is_user_error(error):
            raise
        codes.append(_said(error))


def _said(error: BaseException) -> int:
    cause = error.__cause__ if isinstance(error, InstantiationException) else None
    sentence = str(cause or error)
    if isinstance(error, OmegaConfBaseException):
        sentence = sentence.partition("\n")[0]  # the rest is about OmegaConf's nodes
    print(sentence, file=sys.stderr)
    return 1


def is_user_error(error: BaseException) -> bool:
    """Whether a user can cause and mend it, so that its sentence says enough: files, values, packages, options."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return is_user_error(error.__cause__)
    kinds = (OSError, ValueError, ModuleNotFoundError, OmegaConfBaseException)
    return isinstance(error, kinds) or type(error).__module__.startswith("face2scene.")


def _own_folder(cfg: DictConfig) -> None:
    # Combinations of -m differ in settings, and one folder holds what was made with one set of them.
    if not HydraConfig.initialized():
        return
    ours = HydraConfig.get()
    if ours.mode != RunMode.MULTIRUN:
        return
    given = OverridesParser.create().parse_overrides([word for word in sys.argv[1:] if not word.startswith("-")])
    varied = {override.key_or_group for override in given if override.is_sweep_override()}
    swept = [word for word in ours.overrides.task if word.partition("=")[0].lstrip("+") in varied]
    key = "output" if cfg.get("output") is not None else "name"
    own = key in PATHS or not OmegaConf.is_interpolation(cfg, key)  # what a path holds is data
    if swept and own and key not in varied:
        folder = ",".join(re.sub(r"[^\w.=,-]+", "_", word) for word in swept)
        OmegaConf.update(cfg, key, str(Path(cfg[key]) / folder).replace("${", r"\${"))


def path_values(words: Iterable[str]) -> list[str]:
    """Overrides whose paths mean themselves: brackets, commas, quotes, spaces and `${...}` are letters of a name.

    `null` and an empty value keep their meaning; a list in brackets stays one for `data.photos`, unless a file or
    folder has that name.
    """
    return [_as_data(word) for word in words]


def _as_data(word: str) -> str:
    match = _WORD.fullmatch(word)
    if match is None or match["key"] not in PATHS or match["value"] in ("", "null", "???"):
        return word
    value = match["value"]
    if match["key"] == "data.photos" and value.startswith("[") and not Path(value).exists():
        return word
    # OmegaConf halves backslashes before ${, and one more makes a letter of it
    text = _ESCAPED.sub(lambda found: found[1] * 2 + r"\${", value)
    return f"{match[1]}={QuotedString(text, Quote.single).with_quotes()}"


def typed_values(words: Iterable[str]) -> list[str]:
    """The inverse of `path_values`, for words that go on to another script."""
    return [_as_typed(word) for word in words]


def _as_typed(word: str) -> str:
    match = _WORD.fullmatch(word)
    if match is None or match["key"] not in PATHS or not match["value"].startswith("'"):
        return word
    value = OverridesParser.create().parse_overrides([word])[0].value()
    return f"{match[1]}={_ESCAPED.sub(lambda found: found[1][: len(found[1]) // 2] + '${', str(value))}"


def _experiments(words: Sequence[str]) -> list[Path]:
    """Files of the experiments that are asked for: the project's, and those of --config-dir."""
    folders, names = [CONFIGS], []
    for number, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folders.append(Path(value or (words[number + 1] if number + 1 < len(words) else ".")))
        elif flag.lstrip("+") == "experiment":
            names += value.split(",")
    files = [folder / "experiment" / f"{name.removesuffix('.yaml')}.yaml" for folder in folders for name in names]
    return [file for file in files if file.is_file()]
