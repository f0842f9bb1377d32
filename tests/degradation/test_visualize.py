from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut

from face2scene.degradation import PRESETS, Jpeg, Recipe, Resize, RestoreSize, Sinc
from face2scene.degradation.visualize import CELL, _wrapped, find_recipe, main, sheet, stages
from face2scene.image_io.arrays import to_tensor


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(astronaut()[:200, 150:310]).save(path)
    return path


@pytest.mark.numerics
def test_last_stage_equals_recipe():
    image = to_tensor(astronaut())[:, :120, 180:300]
    shown = stages(PRESETS["d1"], image)
    assert len(shown) == len(PRESETS["d1"].operators)
    assert torch.equal(shown[-1], PRESETS["d1"].apply(image))
    assert shown[1].shape == (3, 36, 36) and shown[-2].shape == (3, 36, 36)


def test_sheet_cells_differ():
    image = to_tensor(astronaut())[:, :120, 180:300]
    recipe = Recipe((Resize(0.25, "area"), Jpeg(5), RestoreSize()))
    drawn = np.asarray(sheet(image, [("mine", recipe)], title="a photo"))
    assert drawn.shape[1] == 4 * (CELL + 16) + 16
    top = 16 + 24 + 16 + 44
    cells = [drawn[top : top + CELL, 16 + n * (CELL + 16) : 16 + n * (CELL + 16) + CELL] for n in range(4)]
    for n in range(4):
        for other in range(n):
            assert np.abs(cells[n].astype(int) - cells[other]).mean() > 1
    assert (drawn[top + CELL :] < 100).any(axis=-1).mean() > 0.005  # and text below


def test_command_writes_png(tmp_path, photo, capsys):
    (tmp_path / "mine.json").write_text(Recipe((Jpeg(10), Sinc(1.5, 9))).to_json())
    out = tmp_path / "new" / "sheet.png"
    main([str(photo), "--recipe", "d3", str(tmp_path / "mine.json"), "tiny", "--seed", "2", "--out", str(out)])
    assert "mine.json" in capsys.readouterr().out
    first = out.read_bytes()
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and drawn.width > 2 * CELL
    main([str(photo), "--recipe", "d3", str(tmp_path / "mine.json"), "tiny", "--seed", "2", "--out", str(out)])
    assert out.read_bytes() == first


def test_large_photo_is_downscaled(tmp_path, photo, capsys):
    main([str(photo), "--recipe", "none", "--side", "100", "--out", str(tmp_path / "s.png")])
    assert "80 x 100 px, 2.00 times smaller than the file" in capsys.readouterr().out


def test_seed_selects_recipe_of_space():
    first, same, other = (find_recipe("paper", np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == same and first != other


def test_labels_wrap_at_cell_width():
    from face2scene.degradation.visualize import _font

    text = ", ".join(f"name_{n} 0.{n}" for n in range(20))
    lines = _wrapped(text, _font(16))
    assert " ".join(lines) == text and len(lines) > 3
    assert all(_font(16).getlength(line) <= CELL for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "d5"], "There is no recipe 'd5': give one of d1, d2, d3, d4, a JSON file that exists, or one of"),
        (["--recipe", "CUT"], "cut.json: The recipe is not whole JSON"),
        (["--recipe", "d1", "--out", "s.jpg"], "ends in .png"),
        (["--recipe", "d1", "--seed", "-1"], "--seed must be 0 or more"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.json").write_text(PRESETS["d1"].to_json()[:60])
    with pytest.raises(SystemExit):
        main([str(photo), *["cut.json" if a == "CUT" else a for a in arguments]])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_missing_photo_is_reported(capsys):
    with pytest.raises(SystemExit):
        main(["nowhere.png", "--recipe", "d1"])
    assert "There is no image at nowhere.png" in capsys.readouterr().err
