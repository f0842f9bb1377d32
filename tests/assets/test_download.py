import errno
import io
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from other_processes import start
from toy_assets import CONTENT, FakePip, catalogue_entry, digest, fetch_and_count, toy_assets

from face2scene.assets import catalogue as weights
from face2scene.assets import convert
from face2scene.assets.catalogue import MissingWeights, WeightsError, is_ready, parse_asset, verify
from face2scene.assets.download import fetch


@pytest.fixture
def archive(tmp_path) -> Path:
    """A wheel as pip would bring it: the wanted member, and one that nobody asked for."""
    path = tmp_path / "index" / "toy-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as box:
        box.writestr("toy/net.bin", CONTENT)
        box.writestr("../escape.txt", "no")
    return path


def other_revision(archive: Path):
    changed = catalogue_entry(archive, members={"toy/net.bin": "renamed.bin"})
    changed["files"] = {"renamed.bin": changed["files"]["net.bin"]}
    return {"toy": parse_asset("toy", changed)}


def fetch_error(root, assets, runner=None, **arguments) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(["toy"], root=root, assets=assets, runner=runner, **arguments)
    left = {path.name for path in root.iterdir()} if root.exists() else set()
    assert left <= {".toy.lock"}, "something half-written was left"
    return str(caught.value)


@pytest.mark.parametrize("members", [{"toy/net.bin": "net.bin"}, "toy/"])
def test_fetch_extracts_only_wanted_members(tmp_path, archive, members):
    root, assets, pip = tmp_path / "w", toy_assets(archive, members=members), FakePip(archive)
    fetch(["toy"], root=root, assets=assets, runner=pip)
    assert (root / "toy/net.bin").read_bytes() == CONTENT
    assert {p.name for p in (root / "toy").iterdir()} == {"net.bin", ".complete"}
    assert {p.name for p in root.iterdir()} == {"toy", ".toy.lock"}
    assert not (tmp_path / "escape.txt").exists()
    assert verify("toy", root=root, assets=assets) == []
    assert pip.commands[0][1:4] == ["-m", "pip", "download"] and "--no-deps" in pip.commands[0]


def test_second_fetch_downloads_nothing(tmp_path, archive):
    assets, pip = toy_assets(archive), FakePip(archive)
    for _ in range(2):
        fetch(["toy"], root=tmp_path / "w", assets=assets, runner=pip)
    assert len(pip.commands) == 1


def test_changed_catalogue_entry_is_refetched(tmp_path, archive):
    root = tmp_path / "w"
    fetch(["toy"], root=root, assets=toy_assets(archive), runner=FakePip(archive))
    assets = other_revision(archive)
    assert not is_ready(assets["toy"], root)
    fetch(["toy"], root=root, assets=assets, runner=FakePip(archive))
    assert {p.name for p in (root / "toy").iterdir()} == {"renamed.bin", ".complete"}


def test_manually_filled_folder_is_accepted(tmp_path, archive):
    root = tmp_path / "w"
    (root / "toy").mkdir(parents=True)
    (root / "toy/net.bin").write_bytes(CONTENT)
    fetch(["toy"], root=root, assets=toy_assets(archive), runner=FakePip(None))
    assert is_ready(toy_assets(archive)["toy"], root)


def test_foreign_files_are_kept(tmp_path, archive):
    root = tmp_path / "w"
    (root / "toy").mkdir(parents=True)
    (root / "toy/mine.txt").write_text("precious")
    fetch(["toy"], root=root, assets=toy_assets(archive), runner=FakePip(archive))
    fetch(["toy"], root=root, assets=other_revision(archive), runner=FakePip(archive))
    assert (root / "toy.previous/mine.txt").read_text() == "precious"
    assert {p.name for p in root.iterdir()} == {"toy", "toy.previous", ".toy.lock"}


def test_wrong_archive_hash_raises(tmp_path, archive):
    message = fetch_error(tmp_path / "w", toy_assets(archive, sha256="0" * 64), FakePip(archive))
    assert "0" * 64 in message and digest(archive.read_bytes()) in message and "deleted" in message


def test_wrong_member_hash_raises(tmp_path, archive):
    wrong = catalogue_entry(archive)
    wrong["files"]["net.bin"]["sha256"] = "1" * 64
    message = fetch_error(tmp_path / "w", {"toy": parse_asset("toy", wrong)}, FakePip(archive))
    assert "1" * 64 in message and digest(CONTENT) in message


def test_truncated_archive_raises(tmp_path, archive):
    assets = toy_assets(archive)
    archive.write_bytes(archive.read_bytes()[:100])
    assert "cut short, 100 of" in fetch_error(tmp_path / "w", assets, FakePip(archive))


@pytest.mark.parametrize("name", ["toy-1.0-py3-none-any.whl", "toy-1.0.tar.gz"])
def test_corrupt_archive_without_hash_raises(tmp_path, archive, name):
    degraded = tmp_path / name
    degraded.write_bytes(archive.read_bytes()[:200])
    assets = toy_assets(archive, archive=name, sha256="unknown", size="unknown")
    assert f"{name} is cut or corrupt" in fetch_error(tmp_path / "w", assets, FakePip(degraded))


def test_missing_member_raises(tmp_path, archive):
    assets = toy_assets(archive, members={"toy/net.bin": "net.bin", "toy/absent.bin": "absent.bin"})
    assert "does not hold toy/absent.bin" in fetch_error(tmp_path / "w", assets, FakePip(archive))


def test_oversized_member_raises(tmp_path, archive):
    long = catalogue_entry(archive)
    long["files"]["net.bin"] = {"size": 10, "sha256": "unknown"}
    message = fetch_error(tmp_path / "w", {"toy": parse_asset("toy", long)}, FakePip(archive))
    assert "longer than the 10 bytes" in message


@pytest.mark.parametrize("name", ["toy-1.0.zip", "toy-1.0.tar.gz"])
def test_pattern_flattens_matching_members(tmp_path, archive, name):
    box = tmp_path / name
    if name.endswith(".zip"):
        shutil.copy(archive, box)
    else:
        with tarfile.open(box, "w:gz") as tar:
            for member in ("./toy/net.bin", "./toy/other.txt"):
                info = tarfile.TarInfo(member)
                info.size = len(CONTENT)
                tar.addfile(info, io.BytesIO(CONTENT))
    assets = toy_assets(archive, archive=name, sha256="unknown", size="unknown", members={"toy/*.bin": ""})
    fetch(["toy"], root=tmp_path / "w", assets=assets, runner=FakePip(box))
    assert {p.name for p in (tmp_path / "w/toy").iterdir()} == {"net.bin", ".complete"}


def test_unknown_catalogue_key_raises(archive):
    with pytest.raises(ValueError, match=r"'toy' is malformed.*'patern'"):
        toy_assets(archive, patern="*")


def test_tar_link_is_rejected(tmp_path, archive):
    box = tmp_path / "toy-1.0.tar.gz"
    with tarfile.open(box, "w:gz") as tar:
        link = tarfile.TarInfo("toy/net.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assets = toy_assets(archive, archive=box.name, sha256="unknown", size="unknown")
    assert "is a link, not a file" in fetch_error(tmp_path / "w", assets, FakePip(box))


def test_path_traversal_is_rejected(archive):
    with pytest.raises(ValueError, match="leaves its folder"):
        toy_assets(archive, members={"toy/net.bin": "../net.bin"})


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("WARNING: Retrying ... NewConnectionError ... Name resolution", "cannot be reached from here"),
        ("ERROR: No matching distribution found for toy==1.0", "does not offer this version"),
        ("python: No module named pip", "has no pip"),
        ("ERROR: something else", "ERROR: something else"),
    ],
)
def test_client_errors_are_explained(tmp_path, archive, output, sentence):
    message = fetch_error(tmp_path / "w", toy_assets(archive), FakePip(None, output))
    assert sentence in message
    assert f"get {archive.name}, then `face2scene fetch toy --from FILE`" in message


@pytest.mark.parametrize("told_by", ["client", "system"])
def test_full_disk_names_option(tmp_path, archive, told_by):
    def full(command, scratch):
        if told_by == "client":
            return (
                1,
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            )
        raise OSError(errno.ENOSPC, "No space left on device")

    message = fetch_error(tmp_path / "w", toy_assets(archive), full)
    assert "is full" in message and "FACE2SCENE_WEIGHTS" in message


def test_debian_package_is_read_without_debian(tmp_path, archive):
    inside, package = io.BytesIO(), archive.parent / "toy_1.0_all.deb"
    with tarfile.open(fileobj=inside, mode="w:xz") as box:
        member = tarfile.TarInfo("./usr/share/net.bin")
        member.size = len(CONTENT)
        box.addfile(member, io.BytesIO(CONTENT))
    parts = {"debian-binary": b"2.0\n", "control.tar": b"odd", "data.tar.xz": inside.getvalue()}
    with open(package, "wb") as file:
        file.write(b"!<arch>\n")
        for name, data in parts.items():
            file.write(
                f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
            )
    assets = toy_assets(package, members={"usr/share/net.bin": "net.bin"})
    fetch(["toy"], root=tmp_path / "w", assets=assets, given=package)
    assert (tmp_path / "w/toy/net.bin").read_bytes() == CONTENT
    package.write_bytes(package.read_bytes()[:100])
    cut = toy_assets(package, members={"usr/share/net.bin": "net.bin"})
    with pytest.raises(WeightsError, match=r"no data\.tar in it"):
        fetch(["toy"], root=tmp_path / "other", assets=cut, given=package)


def test_missing_npm_is_reported(tmp_path, archive, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm is not installed here" in fetch_error(tmp_path / "w", toy_assets(archive, kind="npm"), FakePip(archive))


def test_next_source_is_tried(tmp_path, archive):
    two = catalogue_entry(archive)
    two["sources"].insert(0, {**two["sources"][0], "sha256": "2" * 64})
    fetch(["toy"], root=tmp_path / "w", assets={"toy": parse_asset("toy", two)}, runner=FakePip(archive))
    assert (tmp_path / "w/toy/net.bin").is_file()


def test_failed_asset_does_not_stop_others(tmp_path, archive):
    bad = parse_asset("bad", catalogue_entry(archive, sha256="3" * 64))
    with pytest.raises(WeightsError, match="'bad'"):
        fetch(["bad", "toy"], root=tmp_path / "w", assets={"bad": bad, **toy_assets(archive)}, runner=FakePip(archive))
    assert (tmp_path / "w/toy/net.bin").is_file()


def test_hub_offline_names_variable(tmp_path, archive, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub = {**catalogue_entry(archive), "files": {}, "sources": [{"kind": "hub", "repo": "someone/toy"}]}
    message = fetch_error(tmp_path / "w", {"toy": parse_asset("toy", hub)})
    assert "HF_HUB_OFFLINE is set" in message and "a folder with the files of someone/toy" in message


def test_offline_makes_no_request(tmp_path, archive):
    pip = FakePip(archive)
    assert "this run is offline" in fetch_error(tmp_path / "w", toy_assets(archive), pip, offline=True)
    assert pip.commands == []


def test_supplied_archive_needs_no_network(tmp_path, archive):
    fetch(["toy"], root=tmp_path / "w", assets=toy_assets(archive), given=archive, runner=FakePip(None))
    assert (tmp_path / "w/toy/net.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_supplied_file_or_folder_is_copied(tmp_path, archive, kind):
    given = tmp_path / "given"
    given.mkdir()
    (given / "net.bin").write_bytes(CONTENT)
    given = given / "net.bin" if kind == "file" else given
    fetch(["toy"], root=tmp_path / "w", assets=toy_assets(archive), given=given)
    assert (tmp_path / "w/toy/net.bin").read_bytes() == CONTENT


def test_wrong_supplied_file_raises(tmp_path, archive):
    other = tmp_path / "other.whl"
    other.write_bytes(b"other")
    message = fetch_error(tmp_path / "w", toy_assets(archive), given=other)
    assert digest(b"other") in message and archive.name in message and other.exists()


def test_concurrent_fetch_downloads_once(tmp_path, archive):
    fetches = [start(fetch_and_count, tmp_path, archive) for _ in range(3)]
    for process in fetches:
        process.join(60)
    assert [process.exitcode for process in fetches] == [0] * 3
    assert (tmp_path / "calls").read_text() == "x"


def test_verify_finds_changed_file(tmp_path, archive):
    fetch(["toy"], root=tmp_path / "w", assets=toy_assets(archive), runner=FakePip(archive))
    (tmp_path / "w/toy/net.bin").write_bytes(b"changed")
    (complaint,) = verify("toy", root=tmp_path / "w", assets=toy_assets(archive))
    assert "has changed" in complaint and digest(CONTENT) in complaint


def test_missing_asset_names_command(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="face2scene fetch yunet"):
        weights.folder("yunet")


def test_misspelt_asset_suggests_name():
    with pytest.raises(WeightsError, match="Did you mean yunet"):
        weights.resolve(["yunnet"])


def test_catalogue_is_complete():
    assets = weights.catalogue()
    for group, members in weights.groups().items():
        assert set(members) <= set(assets), group
    for asset in assets.values():
        assert asset.purpose.endswith(".") and asset.licence and asset.sources
        assert not asset.convert or (asset.convert in convert.CONVERTERS and asset.produces)
        for source in asset.sources:
            assert source.archive or source.kind in ("hub", "local")
            if source.verified:
                assert source.sha256 and all(facts.sha256 and facts.size for facts in asset.files.values())
            if source.kind in ("pypi", "npm"):
                assert set(source.members.values()) == set(asset.files), asset.name
    full = "sd_turbo sd21_base realvisxl_v3 faceme photomaker antelopev2 buffalo_l infinite_you s3diff pyiqa"
    assert set(full.split()) <= set(assets)


def test_open_group_has_no_non_commercial():
    for name in weights.groups()["open"]:
        assert "ommercial research" not in weights.catalogue()[name].licence
        assert not weights.catalogue()[name].licence.startswith(("CC BY-NC", "PolyForm"))


def test_non_numpy_pickle_is_rejected(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(io.BytesIO))
    with pytest.raises(WeightsError, match=r"asks for _io\.BytesIO"):
        convert._numpy_pickle(tmp_path / "a.ckpt")


def test_vgg_trunk_matches_torchvision(weights):
    from safetensors.numpy import load_file

    trunk = load_file(weights("lpips") / "vgg16.safetensors")
    np.testing.assert_allclose(trunk["features.0.weight"][0, 0, 0], [-0.5537, 0.1427, 0.5290], atol=5e-5)
    assert len(trunk) == 26 and trunk["features.28.weight"].shape == (512, 512, 3, 3)
