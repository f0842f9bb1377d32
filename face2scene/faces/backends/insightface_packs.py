"""Packs of InsightFace: folders of ONNX files, what each file is for, and folders that are not as they should be."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.faces.embedding import CPU, OnnxIdentity, onnx_session, unreadable


@dataclass(frozen=True, eq=False)
class Landmarks:
    """A landmark network and what it wants and gives."""

    session: Any
    size: int  # of its image
    mean: float
    std: float
    count: int
    dimensions: int


@dataclass(frozen=True, eq=False)
class Pack:
    """The networks of one folder."""

    detector: Any  # insightface's SCRFD
    identity: OnnxIdentity
    landmarks: Landmarks | None


def open_pack(pack: str | Path, providers: Sequence[str] = CPU) -> Pack:
    """The networks of a pack, opened once in a process.

    Raises:
        MissingWeights: when a pack of the catalogue is not there.
        ValueError: for a folder that is empty or holds something else, and for corrupt files.
    """
    folder = pack_folder(pack)
    files = sorted(folder.glob("*.onnx"))
    stamps = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _opened(folder, tuple(providers), stamps)


@lru_cache(maxsize=4)
def _opened(folder: Path, providers: tuple[str, ...], stamps: tuple[tuple[str, int, int], ...]) -> Pack:
    zoo = import_optional("insightface.model_zoo", "faces", why="The faces backend insightface")
    roles: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, *_ in stamps:
        session = onnx_session(folder / name, providers)
        role = _role(session)
        if role is None:
            continue  # age and sex, or something that does not concern us
        if role in names:
            raise ValueError(f"{folder} holds two networks for {role}, {names[role]} and {name}: keep one of them.")
        names[role] = name
        try:
            roles[role] = _network(zoo, role, str(folder / name), session, providers)
        except Exception as error:  # whatever insightface raises for a graph that it does not know
            raise unreadable(folder / name, error) from error
    for role in ("detection", "identity"):
        if role not in roles:
            here = ", ".join(name for name, *_ in stamps)
            raise ValueError(
                f"{folder} holds no network for {role} (it holds {here}): give faces.backend.pack a whole "
                "InsightFace pack, such as buffalo_l."
            )
    return Pack(roles["detection"], roles["identity"], roles.get("68 landmarks", roles.get("106 landmarks")))


def _role(session: Any) -> str | None:
    shape, outputs = session.get_inputs()[0].shape, session.get_outputs()
    if len(shape) != 4:
        return None
    if len(outputs) == 9:
        return "detection"  # three strides of score, box and five points; without points nothing can be aligned
    if len(outputs) != 1:
        return None
    width = outputs[0].shape[-1]
    if shape[2:] == [192, 192]:
        return {3309: "68 landmarks", 212: "106 landmarks"}.get(width)
    return "identity" if shape[2:] == [112, 112] else None


def _network(zoo: Any, role: str, path: str, session: Any, providers: tuple[str, ...]) -> Any:
    if role == "detection":
        # One session for all sizes; insightface would open another for each.
        return zoo.SCRFD(path, session, static_shape_sessions=False)
    if role == "identity":
        net = zoo.ArcFaceONNX(path, session)
        return OnnxIdentity(path, mean=net.input_mean, std=net.input_std, providers=providers)
    net = zoo.Landmark(path, session)
    return Landmarks(session, net.input_size[0], net.input_mean, net.input_std, net.lmk_num, net.lmk_dim)


def pack_folder(pack: str | Path) -> Path:
    """The folder in which a pack's ONNX files lie.

    A pack of the catalogue that was unpacked by hand is accepted where it lies if it is whole, also one folder deeper:
    antelopev2.zip unpacks to antelopev2/antelopev2. No file is moved.

    Raises:
        MissingWeights, ValueError: see `open_pack`.
    """
    asset = catalogue.catalogue().get(str(pack))
    if asset is None:
        if not Path(pack).is_dir():
            known = ", ".join(("buffalo_l", "antelopev2", "insightface_small"))
            raise ValueError(f"faces.backend.pack={pack} is neither a folder nor one of the packs {known}.")
        return _where_onnx_lies(Path(pack))
    folder = catalogue.weights_root() / asset.name
    for root in (folder.parent, folder):
        if catalogue.is_ready(asset, root) or catalogue.adopt(asset, root):
            return root / asset.name
    if not folder.is_dir():
        return catalogue.folder(asset.name)  # raises: it names the command that fetches it
    inner = _where_onnx_lies(folder)
    missing = [name for name in asset.files if not (inner / name).is_file()]
    what = f"{', '.join(missing)} missing" if missing else "a file has other bytes"
    raise ValueError(
        f"{inner} is not the pack that the catalogue knows: {what}. Run `face2scene fetch {asset.name}`, which keeps "
        "the folder beside it, or give its path as faces.backend.pack to use it as it is."
    )


def _where_onnx_lies(folder: Path) -> Path:
    if any(folder.glob("*.onnx")):
        return folder
    nested = sorted({path.parent for path in folder.glob("*/*.onnx")})
    if len(nested) > 1:
        names = ", ".join(path.name for path in nested)
        raise ValueError(f"{folder} holds several packs ({names}): give the path of one of them as faces.backend.pack.")
    if not nested:
        raise ValueError(
            f"{folder} holds no .onnx file: unpack an InsightFace pack into it, or remove it and run "
            "`face2scene fetch` with the pack's name."
        )
    return nested[0]
