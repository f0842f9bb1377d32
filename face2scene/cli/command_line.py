"""The command line of all scripts: options by Hydra, literal paths, and one sentence for an error of the user."""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from tqdm import tqdm
from yaml import MarkedYAMLError

from face2scene.cli.config_text import CONFIGS, key_of, keys, options_of
from face2scene.cli.options import PATHS, UsageError, nearest_key, read
from face2scene.cli.value_rules import did_you_mean, nearest, problems
from face2scene.common.files import disk_error
from face2scene.common.memory import keep_freed_memory
from face2scene.common.renamed_keys import keys_of, refuse_renamed
from face2scene.common.shipped import CHECKPOINTS

# for configs/paths: absolute, so that no default depends on the folder that a command is started in
OmegaConf.register_new_resolver("shipped", lambda: CHECKPOINTS.as_posix(), replace=True)
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch for tracebacks
_WORD = re.compile(r"(\+{0,2}(?P<key>[\w.]+))=(?P<value>.*)", re.DOTALL)
_ESCAPED = re.compile(r"(\\*)\$\{")
_OF_TRAININGS = ("restorer.base", "restorer.adapters", "restorer.perceptual", "mapnet", "fadex", "train")


def script(
    config: str, *, required: Sequence[str] = (), level: int = logging.WARNING
) -> Callable[[Callable[[DictConfig], None]], Callable[..., None]]:
    """Decorate a function of a composed configuration as the `main` of a script.

    The command line is that of `options`. An error that a user can cause (`is_user_error`) ends the script with one
    sentence and exit code 1, a command line that means nothing with 2, Ctrl-C with 130. With Hydra's `-m`, every
    combination is run even if one fails, each into a sub-folder of `output`, else of `name`, that is named after its
    values. `--debug`, or HYDRA_FULL_ERROR=1, shows the whole traceback.

    Args:
        config: name of the root file in configs/.
        required: keys that the user has to give.
        level: lowest level of the log lines that are shown.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[..., None]:
        @functools.wraps(task)
        def main(cfg: DictConfig | None = None) -> None:
            codes: list[int] = []
            job = functools.partial(_run, task, required=required, level=level, codes=codes)
            with _user_errors(codes, config):
                if cfg is None:
                    _by_hydra(job, config)
                else:
                    job(cfg)
            if any(codes):
                sys.exit(max(codes))

        return main

    return decorate


def _by_hydra(job: Callable[[DictConfig], None], config: str) -> None:
    words = read(config.replace("_", "-"), sys.argv[1:])
    refuse_renamed(words.overrides)
    refuse_unread(config, words.overrides)
    photos = [f"input=[{', '.join(map(_literal, words.photos))}]"] if words.photos else []
    sys.argv[1:] = [*words.hydra, *path_values(words.overrides), *photos]
    if words.debug:
        os.environ[FULL_ERROR] = "1"
    asked = os.environ.get(FULL_ERROR, "0")

    def here(cfg: DictConfig) -> None:
        os.environ[FULL_ERROR] = asked
        job(cfg)

    here.__module__ = config  # the name that Hydra gives the job
    try:
        os.environ[FULL_ERROR] = "1"  # Hydra's own errors come here, to be said in one sentence
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config)(here)()
    finally:
        os.environ[FULL_ERROR] = asked


def _run(
    task: Callable[[DictConfig], None], cfg: DictConfig, *, required: Sequence[str], level: int, codes: list[int]
) -> None:
    keep_freed_memory()
    if hasattr(sys.stdout, "reconfigure"):  # names of files may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=level, format="%(message)s")
    root = logging.getLogger()
    before = [*root.handlers]
    try:
        with _user_errors(codes):
            refuse_renamed(keys_of(OmegaConf.to_container(cfg)), source=f"the configuration's files{_chosen()}")
            for key in required:
                if OmegaConf.is_missing(cfg, key):
                    raise ValueError(f"{key}=... is missing: give it on the command line.")
            if HydraConfig.initialized():
                refuse_values(cfg, HydraConfig.get().job.config_name, HydraConfig.get().overrides.task)
            _own_run(cfg)
            task(cfg)
    except KeyboardInterrupt:
        print("Stopped. Every file written is complete; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:  # the other runs of -m are still carried out
        codes.append(end.code if isinstance(end.code, int) else print_error(end) if end.code else 0)
    finally:
        for handler in set(root.handlers) - {*before}:  # the log of this run is not the next one's
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _user_errors(codes: list[int], config: str = "") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if os.environ.get(FULL_ERROR) == "1" or not is_user_error(error):
            raise
        codes.append(print_error(error, config))


def refuse_values(cfg: DictConfig, root: str, words: Sequence[str]) -> None:
    """Refuse a composed configuration with a value that its key cannot have.

    Args:
        root: name of the root file in configs/.
        words: the overrides that it was composed with.

    Raises:
        UsageError: the first such value.
    """
    known = {key: entry for key, entry in keys(root, words).items() if key not in PATHS}
    for sentence in problems(OmegaConf.to_container(cfg), known):
        raise UsageError(sentence)
    name = Path(str(cfg.get("name") or "none"))
    if not name.parts or {"..", name.anchor} & {*name.parts}:
        raise UsageError(f"name={name} is no folder of its own in {cfg.paths.runs}: give another.")


def refuse_unread(root: str, words: Iterable[str]) -> None:
    """Refuse overrides of what a training decides and its weights record, where weights are used.

    A choice of a group, such as train=tiny, is allowed: one set of choices may serve several commands.

    Args:
        root: name of the root file in configs/.
        words: overrides.

    Raises:
        UsageError: the first such key.
    """
    for word in words if root in ("restore", "app") else ():
        key = key_of(word).replace("/", ".")
        if "." in key and any(f"{key}.".startswith(f"{one}.") for one in _OF_TRAININGS):
            raise UsageError(
                f"{root} does not read {key}: it is decided by a training and recorded in the weights. What is read: "
                "restorer_weights, fadex_weights, base, dtype, guidance and the keys of pipeline."
            )


def _chosen() -> str:
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    groups = [word for word in words if (CONFIGS / key_of(word)).is_dir()]
    return f" ({', '.join(groups)})" if groups else ""


def print_error(error: BaseException, config: str = "") -> int:
    """Say an error in one sentence; returns the exit code.

    Args:
        config: name of the root file in configs/, while it is composed.
    """
    cause = error.__cause__ if isinstance(error, InstantiationException) else None
    sentence = str(cause or error)
    if not type(error).__module__.startswith("face2scene."):  # whose own errors say more
        sentence = disk_error(error) or sentence
    if isinstance(error, MissingMandatoryValue):
        sentence = f"{error.full_key}=... is missing: give it on the command line."
    elif isinstance(error, OmegaConfBaseException) or isinstance(cause, ImportError):
        sentence = sentence.partition("\n")[0]  # the rest is about OmegaConf's nodes, or the search for a module
    elif isinstance(error, HydraException) and cause is None:
        sentence = _composing(error, config)
    elif isinstance(error, MarkedYAMLError) and (mark := error.problem_mark):
        sentence = f"{mark.name} is not YAML: line {mark.line + 1}, {error.problem}."
    elif isinstance(error, UnicodeDecodeError) and config:
        sentence = f"A file of the configuration is not in UTF-8 ({error}): save it as UTF-8."
    elif isinstance(error, OSError) and error.filename and sentence == str(error):
        place = error.filename2 or error.filename  # of a move the second is the name that the user gave
        sentence = f"{place} cannot be used ({error.strerror}): choose another file or folder."
    if isinstance(cause, ImportError) and "'face2scene." in sentence:
        sentence += " There is no such module or class; CHANGELOG.md lists those that were renamed."
    for bar in [*tqdm._instances]:  # those the error left open, whose line the sentence would share
        bar.close()
    print(sentence, file=sys.stderr)
    return 2 if isinstance(error, UsageError | HydraException) and cause is None else 1


def _composing(error: HydraException, config: str) -> str:
    """One sentence for an override that Hydra cannot apply, with the nearest that it can."""
    first = str(error).partition("\n")[0]
    if found := re.search(r"Could not (?:find|load) '([\w/]+)/(.*)'", first):
        known = options_of(found[1])
        return f"There is no {found[1]}={found[2]}{did_you_mean(nearest(found[2], known))}: choose {', '.join(known)}."
    if found := re.search(r"(?:override|config group|config\.) '(.*?)'", first):
        hint = did_you_mean(nearest_key(found[1], keys(config))) if config else ""
        return f"There is no key {found[1]}{hint}: --help-all prints them all, and +{found[1]}=... adds one."
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read ({first}): put a value with special characters into quotes."
    if found := re.search(r"already at '(.*)'", first):
        return f"{found[1]} is there already: {found[1]}=... changes it."
    if found := re.search(r"Ambiguous value for argument '(.*)'", first):
        key, _, value = found[1].partition("=")
        return f"{found[1]} is several values: {key}=[{value}] is a list, and -m runs one after another."
    return first


def is_user_error(error: BaseException) -> bool:
    """Whether a user can cause and correct it (files, values, packages, options), so that no traceback is needed."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return isinstance(error.__cause__, ImportError) or is_user_error(error.__cause__)
    kinds = (OSError, ValueError, ModuleNotFoundError, OmegaConfBaseException, HydraException, MarkedYAMLError)
    return isinstance(error, kinds) or type(error).__module__.startswith("face2scene.") or bool(disk_error(error))


def _own_run(cfg: DictConfig) -> None:
    # Combinations of -m differ in settings, and a folder holds the results of one set of settings.
    if not HydraConfig.initialized() or (ours := HydraConfig.get()).mode != RunMode.MULTIRUN:
        return
    if accelerate := sys.modules.get("accelerate.state"):  # it refuses settings other than the first run's
        accelerate.AcceleratorState._reset_state()
        accelerate.GradientState._reset_state()
    given = OverridesParser.create().parse_overrides([word for word in sys.argv[1:] if not word.startswith("-")])
    varied = {override.key_or_group for override in given if override.is_sweep_override()}
    swept = [word for word in ours.overrides.task if key_of(word) in varied]
    key = "output" if cfg.get("output") is not None else "name"
    own = key in PATHS or not OmegaConf.is_interpolation(cfg, key)  # ${...} in a path is literal
    if swept and own and key not in varied:
        folder = ",".join(re.sub(r"[^\w.=,-]+", "_", word) for word in swept)
        OmegaConf.update(cfg, key, str(Path(cfg[key]) / folder).replace("${", r"\${"))


def path_values(words: Iterable[str]) -> list[str]:
    """Overrides with their paths quoted, so that brackets, commas, quotes, spaces and `${...}` in them are literal.

    `null` and an empty value keep their meaning, as does a list in brackets for `data.photos`, unless a file or folder
    has that name.
    """
    return [_quoted(word) for word in words]


def _quoted(word: str) -> str:
    match = _WORD.fullmatch(word)
    if match is None or match["key"] not in PATHS or match["value"] in ("", "null", "???"):
        return word
    value = match["value"]
    if match["key"] == "data.photos" and value.startswith("[") and not Path(value).exists():
        return word
    return f"{match[1]}={_literal(value)}"


def _literal(value: str) -> str:
    # OmegaConf halves the backslashes before ${, and one more escapes it
    text = _ESCAPED.sub(lambda found: found[1] * 2 + r"\${", value)
    return QuotedString(text, Quote.single).with_quotes()


def typed_values(words: Iterable[str]) -> list[str]:
    """The inverse of `path_values`, for overrides that are passed to another script."""
    return [_unquoted(word) for word in words]


def _unquoted(word: str) -> str:
    match = _WORD.fullmatch(word)
    if match is None or match["key"] not in PATHS or not match["value"].startswith("'"):
        return word
    value = OverridesParser.create().parse_overrides([word])[0].value()
    return f"{match[1]}={_ESCAPED.sub(lambda found: found[1][: len(found[1]) // 2] + '${', str(value))}"
