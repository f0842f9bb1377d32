"""Sources that misbehave: the next one is tried, nothing wrong is taken, a cut download goes on where it was."""

import hashlib
import io
import json
import struct
import zipfile

import huggingface_hub.constants
import huggingface_hub.hf_api
import pytest
from bad_server import Misbehaving, serving

from face2scene.assets import hub_download
from face2scene.assets.catalogue import WeightsError, parse_asset
from face2scene.assets.download import fetch

CONTENT = bytes(range(256)) * 40
FAULTS = [
    *("cut_at_once", "cut_chunks", "odd_chunks", "odd_status", "silent", "endless_header", "many_headers"),
    *("no_content", "other_range", "web_page", "unnumbered_length", "longer", "announced_longer", "shorter"),
    *("busy", "circle", "other_scheme"),
]


def asset_of(*urls, content=CONTENT, hashed=True, **changes):
    sha256 = hashlib.sha256(content).hexdigest() if hashed else "unknown"
    source = {"kind": "url", "archive": "net.bin", "size": len(content), "sha256": sha256, **changes}
    entry = {
        "purpose": "A toy.",
        "licence": {"weights": "MIT"},
        "files": {"net.bin": {"size": len(content) if hashed else "unknown", "sha256": sha256}},
        "sources": [{**source, "url": url} for url in urls],
    }
    return parse_asset("toy", entry)


def fetched(root, asset) -> bytes:
    fetch(["toy"], root=root, assets={"toy": asset})
    assert {path.name for path in root.iterdir()} == {"toy", ".toy.lock"}
    return (root / "toy/net.bin").read_bytes()


@pytest.mark.parametrize("fault", FAULTS)
def test_next_source_follows_any_fault(tmp_path, fault):
    with serving(Misbehaving(CONTENT, fault).answer) as bad, serving(Misbehaving(CONTENT, "whole").answer) as good:
        assert fetched(tmp_path, asset_of(f"{bad}/net.bin", f"{good}/net.bin")) == CONTENT


@pytest.mark.parametrize("fault", FAULTS)
def test_next_asset_follows_any_fault(tmp_path, fault):
    with serving(Misbehaving(CONTENT, fault).answer) as bad, serving(Misbehaving(CONTENT, "whole").answer) as good:
        assets = {"bad": asset_of(f"{bad}/net.bin"), "toy": asset_of(f"{good}/net.bin")}
        with pytest.raises(WeightsError, match="could not be fetched: url http"):
            fetch(["bad", "toy"], root=tmp_path, assets=assets)
    assert (tmp_path / "toy/net.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("hashed", [True, False])
def test_cut_download_goes_on_where_it_stopped(tmp_path, hashed):
    server = Misbehaving(CONTENT, "cut", "busy", "cut_at_once", "cut", "whole")
    with serving(server.answer) as address:
        asset = asset_of(f"{address}/net.bin", hashed=hashed, size="unknown")
        for _ in range(2):
            with pytest.raises(WeightsError, match="could not be fetched"):
                fetch(["toy"], root=tmp_path, assets={"toy": asset})
        assert fetched(tmp_path, asset) == CONTENT
    half, quarter = len(CONTENT) // 2, len(CONTENT) // 4
    assert server.ranges == [None, *[f"bytes={half}-"] * 3, f"bytes={half + quarter}-"]


def test_whole_download_is_not_sent_again(tmp_path):
    server = Misbehaving(CONTENT, "whole")
    with serving(server.answer) as address:
        asset = asset_of(f"{address}/net.bin")
        from face2scene.assets.http_download import download

        for _ in range(2):  # as if the first had been killed before it unpacked
            download(f"{address}/net.bin", tmp_path / "net.bin", title="toy", sha256=asset.files["net.bin"].sha256)
    assert (tmp_path / "net.bin").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT)}-"]


def test_changed_file_is_downloaded_anew(tmp_path):
    with serving(Misbehaving(CONTENT, "cut_chunks").answer) as address, pytest.raises(WeightsError):
        fetch(["toy"], root=tmp_path, assets={"toy": asset_of(f"{address}/net.bin", hashed=False, size="unknown")})
    other = CONTENT[::-1]
    server = Misbehaving(other, "whole")
    (note,) = tmp_path.rglob("*.validator")
    note.write_text('"version 0"')
    with serving(server.answer) as new:
        # the same source at another port: its folder is named after its entry
        asset = asset_of(f"{new}/net.bin", content=other, hashed=False, size="unknown")
        note.parent.rename(note.parent.with_name(_folder_of(asset)))
        assert fetched(tmp_path, asset) == other
    assert server.ranges[0].startswith("bytes=")


def _folder_of(asset) -> str:
    return hashlib.sha256(repr(asset.sources[0]).encode()).hexdigest()[:16]


def test_wrong_content_is_not_kept(tmp_path):
    with serving(Misbehaving(CONTENT[::-1], "whole").answer) as bad, pytest.raises(WeightsError, match="has sha256"):
        fetch(["toy"], root=tmp_path, assets={"toy": asset_of(f"{bad}/net.bin")})
    assert {path.name for path in tmp_path.iterdir()} == {".toy.lock"}


@pytest.mark.parametrize(("offset", "value"), [(6, 1), (8, 99), (8, 0x1234)])
def test_unreadable_zip_is_followed_by_next_source(tmp_path, offset, value):
    box = io.BytesIO()
    with zipfile.ZipFile(box, "w") as file:
        file.writestr("net.bin", CONTENT)
    good = box.getvalue()
    bad = bytearray(good)
    struct.pack_into("<H", bad, offset, value)  # of the member: flags (1 is encrypted), then method
    struct.pack_into("<H", bad, bad.index(b"PK\1\2") + offset + 2, value)
    with serving(Misbehaving(bytes(bad), "whole").answer) as one, serving(Misbehaving(good, "whole").answer) as two:
        source = {"kind": "url", "archive": "net.zip", "members": {"net.bin": "net.bin"}}
        entry = {
            "purpose": "A toy.",
            "licence": {"weights": "MIT"},
            "files": {"net.bin": {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}},
            "sources": [{**source, "url": f"{address}/net.zip"} for address in (one, two)],
        }
        assert fetched(tmp_path, parse_asset("toy", entry)) == CONTENT


def test_unknown_archive_error_is_one_sentence(tmp_path):
    with serving(Misbehaving(b"PK" + CONTENT, "whole").answer) as address:
        asset = asset_of(
            f"{address}/net.zip", hashed=False, archive="net.zip", members={"a": "net.bin"}, size="unknown"
        )
        with pytest.raises(WeightsError, match="cut or corrupt"):
            fetch(["toy"], root=tmp_path, assets={"toy": asset})


class Hub:
    """The parts of a model hub that a download asks for, with one large and one small file."""

    commit = "0123456789" * 4

    def __init__(self, *plan: str):
        self.large, self.small = Misbehaving(CONTENT, *plan), Misbehaving(b"{}", "whole")
        self.names, self.down = {"large.bin": self.large, "config.json": self.small}, False

    def answer(self, request):
        path = request.path.partition("?")[0]
        if self.down:
            return request.send_error(404)
        if path.startswith("/api/"):
            files = [
                {
                    "type": "file",
                    "path": name,
                    "rfilename": name,
                    "blobId": "1" * 40,
                    "oid": "1" * 40,
                    "size": len(one.content),
                }
                for name, one in self.names.items()
            ]
            lfs = {"oid": self._sha256, "sha256": self._sha256, "size": len(CONTENT), "pointerSize": 130}
            files[0]["lfs"] = lfs
            listing = files if "/tree/" in path else {"id": "a/toy", "sha": self.commit, "siblings": files}
            body = json.dumps(listing).encode()
            request.send_response(200)
            request.send_header("Content-Type", "application/json")
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            return request.wfile.write(body)
        server = self.names[path.rpartition("/")[2]]
        if request.command == "HEAD":
            request.send_response(200)
            request.send_header("X-Repo-Commit", self.commit)
            request.send_header("ETag", f'"{self._sha256 if server is self.large else "1" * 40}"')
            request.send_header("Content-Length", str(len(server.content)))
            return request.end_headers()
        server.answer(request)
        return None

    @property
    def _sha256(self):
        return hashlib.sha256(CONTENT).hexdigest()


def hub_asset(**changes):
    source = {"kind": "hub", "repo": "a/toy", "revision": Hub.commit}
    entry = {"purpose": "A toy.", "licence": {"weights": "MIT"}, "sources": [source], **changes}
    return {"toy": parse_asset("toy", entry)}


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_download, "LARGE_FILE", 1000)

    def use(address):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", address)

    return use


def test_hub_goes_on_inside_a_large_file(tmp_path, online):
    hub = Hub("cut", "busy", "whole")
    with serving(hub.answer) as address:
        online(address)
        with pytest.raises(WeightsError, match="503"):
            fetch(["toy"], root=tmp_path, assets=hub_asset())
        hub.down = True
        with pytest.raises(WeightsError, match="cannot be compared with the hub's list"):
            fetch(["toy"], root=tmp_path, assets=hub_asset())
        hub.down = False
        fetch(["toy"], root=tmp_path, assets=hub_asset())
    assert (tmp_path / "toy/large.bin").read_bytes() == CONTENT
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"large.bin", "config.json", ".complete"}
    assert {path.name for path in tmp_path.iterdir()} == {"toy", ".toy.lock"}
    assert hub.large.ranges == [None, f"bytes={len(CONTENT) // 2}-", f"bytes={len(CONTENT) // 2}-"]


def test_hub_name_outside_its_folder_is_refused(tmp_path, online):
    hub = Hub("whole")
    hub.names = {"../large.bin": hub.large, "config.json": hub.small}
    with serving(hub.answer) as address:
        online(address)
        with pytest.raises(WeightsError, match="outside its folder"):
            fetch(["toy"], root=tmp_path, assets=hub_asset())
    assert {path.name for path in tmp_path.iterdir()} == {".toy.lock"}
