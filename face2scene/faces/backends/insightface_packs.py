"""InsightFace packs: folders of ONNX files, the role of each file, and errors of incomplete folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from face2scene.assets import catalogue
from face2scene.common.optional import import_optional
from face2scene.faces.embedding import CPU, OnnxIdentity, file_stamp, onnx_session, unreadable


@dataclass(frozen=True, eq=False)
class Pack:
    """The networks of one folder."""

    detector: Any  # insightface's SCRFD
    identity: OnnxIdentity
    landmarks: Any  # insightface's Landmark, or None


def open_pack(pack: str | Path, providers: Sequence[str] = CPU) -> Pack:
    """The networks of a pack, loaded once per process.

    Raises:
        MissingWeights: when a pack of the catalogue is not there.
        ValueError: for a folder without a complete pack, and for corrupt files.
    """
    folder = pack_folder(pack)
    files = sorted(folder.glob("*.onnx"))
    stamps = tuple((file.name, *file_stamp(file)) for file in files)
    return _opened(folder, tuple(providers), stamps)


@lru_cache(maxsize=4)
def _opened(folder: Path, providers: tuple[str, ...], stamps: tuple[tuple[str, int, int], ...]) -> Pack:
    zoo = import_optional("insightface.model_zoo", "faces", why="The faces backend insightface")
    roles: dict[str, Any] = {}
    names: dict[str, str] = {}
    for name, *_ in stamps:
        session = onnx_session(folder / name, providers)
        role = _role(session)
        if role is None:  # age and sex, or anything else that is not used
            continue
        if role in names:
            raise ValueError(f"{folder} holds two networks for {role}, {names[role]} and {name}: keep one of them.")
        names[role] = name
        path = str(folder / name)
        try:
            if role == "detection":
                # One session for all sizes; insightface would create another for each.
                roles[role] = zoo.SCRFD(path, session, static_shape_sessions=False)
            elif role == "identity":
                net = zoo.ArcFaceONNX(path, session)
                roles[role] = OnnxIdentity(path, mean=net.input_mean, std=net.input_std, providers=providers)
            else:
                roles[role] = zoo.Landmark(path, session)
        except Exception as error:  # insightface raises many kinds for an unknown graph
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
        return "detection"  # score, box and five points at three strides
    if len(outputs) != 1:
        return None
    width = outputs[0].shape[-1]
    if shape[2:] == [192, 192]:
        return {3309: "68 landmarks", 212: "106 landmarks"}.get(width)
    return "identity" if shape[2:] == [112, 112] else None


def pack_folder(pack: str | Path) -> Path:
    """The folder with a pack's ONNX files.

    A complete pack of the catalogue that was unpacked by hand is accepted in place, also one folder deeper:
    antelopev2.zip unpacks to antelopev2/antelopev2. No file is moved.

    Raises:
        MissingWeights, ValueError: see `open_pack`.
    """
    asset = catalogue.catalogue().get(str(pack))
    if asset is None:
        if not Path(pack).is_dir():
            known = "buffalo_l, antelopev2, insightface_small"
            raise ValueError(f"faces.backend.pack={pack} is neither a folder nor one of the packs {known}.")
        return _folder_with_onnx(Path(pack))
    folder = catalogue.weights_root() / asset.name
    for root in (folder.parent, folder):
        if catalogue.is_ready(asset, root) or catalogue.adopt(asset, root):
            return root / asset.name
    if not folder.is_dir():
        return catalogue.folder(asset.name)  # raises: it names the command that fetches it
    inner = _folder_with_onnx(folder)
    missing = [name for name in asset.files if not (inner / name).is_file()]
    what = f"{', '.join(missing)} missing" if missing else "a file has other bytes"
    raise ValueError(
        f"{inner} is not the pack that the catalogue knows: {what}. Run `face2scene fetch {asset.name}`, which keeps "
        "the folder beside it, or give its path as faces.backend.pack to use it as it is."
    )


def _folder_with_onnx(folder: Path) -> Path:
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
