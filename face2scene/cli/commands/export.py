"""Write the trained parts for other programs: `python scripts/export.py output=FOLDER`; see configs/export.yaml."""

from pathlib import Path

from omegaconf import DictConfig

from face2scene.cli.command_line import script
from face2scene.common.files import ready_to_write, remove_partials
from face2scene.common.locks import locked
from face2scene.inference.export import export_fadex, export_mapnet, export_merged
from face2scene.models.fadex.encoder import FaDeX

PARTS = ("merged", "fadex", "mapnet")


@script("export")
def main(cfg: DictConfig) -> None:
    """Export each part and compare it with its module."""
    unknown = sorted(set(cfg.parts) - set(PARTS))
    if unknown:
        raise ValueError(f"There is no part {unknown[0]!r} to export: choose among {', '.join(PARTS)} (option parts).")
    folder = Path(cfg.output)
    with locked(folder, "choose another output"):
        ready_to_write(folder, "output")
        remove_partials(folder, seconds=3600)  # a training may write there, too
        _export(cfg, folder)


def _export(cfg: DictConfig, folder: Path) -> None:
    for part in cfg.parts:
        if part == "merged":
            path = folder / "restorer_merged.safetensors"
            export_merged(cfg.restorer_weights, path, base=cfg.base, dtype=cfg.dtype, file_dtype=cfg.file_dtype)
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {cfg.dtype}")
            continue
        if part == "fadex":
            differences = export_fadex(FaDeX.from_file(cfg.fadex_weights), folder)
        else:
            differences = export_mapnet(cfg.restorer_weights, folder)
        for file, difference in differences.items():
            print(f"{folder / file}: at most {difference:.1e} from the module")


if __name__ == "__main__":
    main()
