"""The backends insightface and facexlib: real networks where a package index has them, else of the same shapes."""

import shutil

import numpy as np
import pytest
import torch

from face2scene.assets.catalogue import MissingWeights
from face2scene.common.types import Face
from face2scene.faces import embedding
from face2scene.faces.align import five_points, warp
from face2scene.faces.backends import facexlib, insightface
from face2scene.faces.backends.facexlib import FacexBackend, IrSe50, peaks
from face2scene.faces.backends.insightface import InsightBackend, sixty_eight_of_106
from face2scene.faces.backends.insightface_packs import open_pack, pack_folder
from face2scene.faces.backends.yunet_dlib import OpenBackend
from face2scene.faces.detect import Detector
from face2scene.faces.embedding import OnnxIdentity, WithIdentityNet, onnx_session
from face2scene.faces.identity import cosine
from face2scene.faces.pose import upright_view
from face2scene.image_io.arrays import read_image, resize, to_array, to_bytes, to_tensor

UPRIGHT_POINTS = np.array([[40.0, 50], [80, 50], [60, 72], [44, 95], [76, 95]])


@pytest.fixture(scope="module")
def portraits(weights):
    folder = weights("photos_face_recognition")
    photos = {name: to_tensor(read_image(folder / f"{name}.jpg")) for name in ("obama", "obama2", "biden")}
    return {name: to_array(resize(p, (p.shape[1] * 480 // p.shape[2], 480))) for name, p in photos.items()}


@pytest.fixture(scope="module")
def insightface_small(weights):
    pytest.importorskip("insightface")
    weights("insightface_small")
    return Detector(InsightBackend("insightface_small", det_size=640), max_side=640)


@pytest.fixture(scope="module")
def retinaface(weights):
    pytest.importorskip("facexlib")
    weights("retinaface_mobile025"), weights("w600k_mbf")
    return Detector(FacexBackend(network="mobile0.25", landmarks=False, identity=OnnxIdentity()))


# --- insightface --------------------------------------------------------------------------------------------


def test_insightface_separates_identities(insightface_small, portraits, photo):
    found = {name: insightface_small.find(image) for name, image in {**portraits, "astronaut": photo}.items()}
    assert {name: len(faces) for name, faces in found.items()} == dict.fromkeys(found, 1)
    same = cosine(found["obama"][0], found["obama2"][0])
    different = cosine(found["obama"][0], found["biden"][0])
    assert same > insightface_small.same_threshold + 0.2 and different < insightface_small.same_threshold - 0.1
    assert found["obama"][0].identity_model == insightface_small.backend.identity_model == "w600k_mbf"


def test_68_landmarks_agree_with_dlib(insightface_small, portraits, weights):
    pytest.importorskip("dlib")
    weights("yunet"), weights("dlib")
    judge = Detector(OpenBackend(), identities=False)
    for name in ("obama2", "biden"):
        (ours,), (witness,) = insightface_small.find(portraits[name]), judge.find(portraits[name])
        eyes = np.linalg.norm(np.diff(five_points(witness.landmarks_68)[:2], axis=0))
        off = np.linalg.norm(ours.landmarks_68 - witness.landmarks_68, axis=1) / eyes
        assert off[17:].mean() < 0.07 and off.max() < 0.3  # the outline is drawn differently
        assert np.abs(np.subtract(ours.pose, witness.pose)).max() < 12


def test_faces_are_embedded_in_one_batch(insightface_small, portraits, monkeypatch):
    both = np.concatenate([portraits["obama"][:480], portraits["biden"][:480]], axis=1)
    runs = []
    real = embedding.run_batch
    monkeypatch.setattr(embedding, "run_batch", lambda session, batch: runs.append(len(batch)) or real(session, batch))
    together = insightface_small.find(both)
    assert len(together) == 2 and runs == [2]
    for face in together:
        place = Face(face.box, face.score, face.landmarks_5)
        (alone,) = insightface_small.backend.describe(both, [place], identities=True)
        assert cosine(face, alone) > 0.9999
        np.testing.assert_allclose(face.landmarks_68, alone.landmarks_68, atol=1e-3)


def test_detector_input_is_never_upscaled(insightface_small, monkeypatch):
    seen = []
    detector = insightface_small.backend._networks.detector
    nothing = (np.empty((0, 5)), np.empty((0, 5, 2)))
    monkeypatch.setattr(
        detector, "detect", lambda image, input_size, det_thresh: seen.append((image.shape, input_size)) or nothing
    )
    for shape in ((900, 1200, 3), (300, 200, 3)):
        assert insightface_small.backend.search(np.zeros(shape, np.uint8)) == []
    assert seen == [((900, 1200, 3), (640, 640)), ((320, 320, 3), (320, 320))]
    with pytest.raises(ValueError, match=r"det_size is 500.*multiple of 32"):
        InsightBackend(det_size=500)


def test_padding_does_not_move_boxes(insightface_small, portraits):
    little = to_bytes(resize(to_tensor(portraits["obama"][:400]), (150, 175)))
    found = max(insightface_small.backend.search(little), key=lambda f: f.score)
    x0, y0, x1, y1 = found.box
    assert 0 < x0 < x1 < 175 and 0 < y0 < y1 < 150
    assert ((found.landmarks_5 > [x0, y0]) & (found.landmarks_5 < [x1, y1])).all()


def test_detectors_share_networks(insightface_small, weights):
    other = InsightBackend("insightface_small", det_size=320)
    assert other._networks is insightface_small.backend._networks
    assert onnx_session(weights("w600k_mbf") / "w600k_mbf.onnx") is onnx_session(
        weights("w600k_mbf") / "w600k_mbf.onnx"
    )


def write_constant_onnx(path, shape, answer, outputs=1):
    """An ONNX file that gives `answer` for every image of `shape`."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    answer = np.asarray(answer, dtype=np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["none"]),
        helper.make_node("Unsqueeze", ["none"], ["column"], axes=[1]),
    ]
    nodes += [helper.make_node("Add", ["column", "answer"], [f"out{n}"]) for n in range(outputs)]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"out{n}", TensorProto.FLOAT, [1, len(answer)]) for n in range(outputs)],
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero"), numpy_helper.from_array(answer[None], "answer")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    return path


@pytest.fixture
def buffalo_like_pack(tmp_path, weights):
    """A folder shaped like buffalo_l: a real detector, a 3D landmark net of known answer, an identity net."""
    pytest.importorskip("insightface")
    folder = tmp_path / "buffalo"
    folder.mkdir()
    shutil.copy(weights("insightface_small") / "scrfd_500m_bnkps.onnx", folder / "det_10g.onnx")
    circle = np.stack([np.cos(np.arange(68)), np.sin(np.arange(68)), np.zeros(68)], axis=1) * 0.5
    answer = np.concatenate([np.full((1035, 3), 9.0), circle])
    write_constant_onnx(folder / "1k3d68.onnx", ["None", 3, 192, 192], answer.ravel())
    write_constant_onnx(folder / "2d106det.onnx", ["None", 3, 192, 192], np.zeros(212))
    write_constant_onnx(folder / "genderage.onnx", ["None", 3, 96, 96], np.zeros(3))
    write_constant_onnx(folder / "w600k_r50.onnx", [1, 3, 112, 112], np.arange(1, 513))
    return folder


def test_3d_landmarks_are_in_image_pixels(buffalo_like_pack, portraits):
    (face,) = Detector(InsightBackend(buffalo_like_pack, det_size=640), max_side=640).find(portraits["obama"])
    view = upright_view(face.box, face.landmarks_5, 192, 1.5)
    expected = np.stack([np.cos(np.arange(68)), np.sin(np.arange(68))], axis=1) * 48 + 95.5
    np.testing.assert_allclose(view(face.landmarks_68), expected, atol=1e-3)
    assert face.identity_model == "w600k_r50" and face.identity.shape == (512,)
    assert np.linalg.norm(face.identity) == pytest.approx(1, abs=1e-5)


def test_fixed_batch_network_runs_per_face(buffalo_like_pack, portraits):
    crops = torch.rand(3, 3, 112, 112)
    assert OnnxIdentity(buffalo_like_pack / "w600k_r50.onnx").embed(list(crops)).shape == (3, 512)


@pytest.mark.parametrize("degrees", [0, 40, 90, 180, -90])
def test_upright_view_of_any_rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = (UPRIGHT_POINTS - 60) @ np.array([[c, s], [-s, c]]) + 60
    low, high = turned.min(0), turned.max(0)
    view = upright_view((*low, *high), turned, 192, 1.5)
    left, right, _, mouth, _ = view(turned)
    assert abs(left[1] - right[1]) < 1e-6 and left[0] < right[0] and mouth[1] > left[1]
    np.testing.assert_allclose(view((low + high) / 2 - 0.5), [95.5, 95.5])


def test_68_of_106_keep_outline_order():
    points = np.zeros((106, 2))
    points[insightface._OUTLINE] = np.stack([np.arange(33.0), np.zeros(33)], axis=1)
    outline = sixty_eight_of_106(points)[:17, 0]
    assert (np.diff(outline) > 1).all() and outline[8] == 16
    np.testing.assert_allclose(outline + outline[::-1], 32)
    assert sorted([*insightface._OUTLINE, *insightface._INNER]) == sorted({*insightface._OUTLINE, *insightface._INNER})


# --- incomplete and nested packs ----------------------------------------------------------------------------


def write_nested_pack(root, weights, name="insightface_small"):
    inner = root / name / name
    shutil.copytree(weights("insightface_small"), inner, ignore=shutil.ignore_patterns(".*"))
    (inner / "README.txt").write_text("kept")
    return inner


def test_nested_pack_of_the_catalogue_is_read_where_it_lies(tmp_path, weights, monkeypatch):
    pytest.importorskip("insightface")
    inner = write_nested_pack(tmp_path, weights)
    before = {path.name: path.read_bytes() for path in inner.iterdir()}
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    assert pack_folder("insightface_small") == inner
    assert [path.name for path in inner.parent.iterdir()] == [inner.name]
    assert {path.name: path.read_bytes() for path in inner.iterdir() if path.name != ".complete"} == before
    assert open_pack("insightface_small").landmarks.lmk_num == 106


def test_nested_pack_with_other_bytes_is_refused(tmp_path, weights, monkeypatch):
    inner = write_nested_pack(tmp_path, weights)
    with open(inner / "w600k_mbf.onnx", "r+b") as file:
        file.write(b"other")
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"a file has other bytes\. Run `face2scene fetch insightface_small`"):
        pack_folder("insightface_small")


def test_nested_folder_by_path_is_read(tmp_path, weights):
    inner = write_nested_pack(tmp_path, weights, "mine")
    assert pack_folder(tmp_path / "mine") == inner
    assert (inner / "README.txt").exists()


def test_partial_pack_lists_missing_files(tmp_path, weights, monkeypatch):
    inner = write_nested_pack(tmp_path, weights)
    (inner / "w600k_mbf.onnx").unlink()
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"w600k_mbf\.onnx missing.*face2scene fetch insightface_small"):
        pack_folder("insightface_small")


def test_missing_pack_names_fetch_command(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="face2scene fetch antelopev2"):
        InsightBackend("antelopev2").search(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"faces\.backend\.pack=buffalo_xxl is neither a folder nor"):
        pack_folder("buffalo_xxl")


def test_empty_or_ambiguous_pack_is_refused(buffalo_like_pack, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no \.onnx file: unpack"):
        pack_folder(tmp_path / "empty")
    shutil.copy(buffalo_like_pack / "w600k_r50.onnx", buffalo_like_pack / "glintr100.onnx")
    with pytest.raises(ValueError, match=r"two networks for identity, glintr100\.onnx and w600k_r50\.onnx"):
        open_pack(buffalo_like_pack)
    (buffalo_like_pack / "glintr100.onnx").unlink()
    (buffalo_like_pack / "det_10g.onnx").unlink()
    with pytest.raises(ValueError, match=r"no network for detection \(it holds 1k3d68\.onnx, "):
        open_pack(buffalo_like_pack)


def test_replaced_network_is_reloaded(buffalo_like_pack):
    path = buffalo_like_pack / "w600k_r50.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"w600k_r50\.onnx is not a readable network .*: replace it with a whole copy"):
        open_pack(buffalo_like_pack)
    path.write_bytes(whole)
    assert open_pack(buffalo_like_pack).identity.name == "w600k_r50"


def test_missing_provider_is_refused(weights):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"ONNX Runtime has no NoSuchProvider here.*CPUExecutionProvider"):
        OnnxIdentity("w600k_mbf", providers=["NoSuchProvider"]).embed([torch.zeros(3, 112, 112)])


def test_invalid_identity_source_is_refused():
    with pytest.raises(ValueError, match="photos_pyiqa_calibration is neither an ONNX file"):
        OnnxIdentity("photos_pyiqa_calibration")


# --- other identity networks for a backend ------------------------------------------------------------------


@pytest.mark.parametrize("source", ["w600k_mbf", "sface"])
def test_identity_network_can_be_replaced(source, portraits, weights):
    pytest.importorskip("onnxruntime"), pytest.importorskip("dlib")
    weights("yunet"), weights("dlib"), weights(source)
    detector = Detector(WithIdentityNet(OpenBackend(), OnnxIdentity(source)))
    (one,), (two,), (other,) = (detector.find(portraits[name]) for name in ("obama", "obama2", "biden"))
    assert cosine(one, two) > detector.same_threshold > cosine(one, other)
    assert one.landmarks_68.shape == (68, 2) and one.identity_model == detector.backend.identity_model
    place = Face(one.box, one.score, one.landmarks_5)
    assert detector.backend.describe(portraits["obama"], [place], identities=False)[0].identity is None


def test_degenerate_face_has_no_identity(weights):
    weights("w600k_mbf")
    image = np.random.default_rng(0).uniform(size=(128, 128, 3)).astype(np.float32)
    whole, broken = (
        Face((30, 30, 90, 110), 1.0, UPRIGHT_POINTS),
        Face((0, 0, 20, 20), 1.0, np.full((5, 2), 7.0)),
    )
    backend = FacexBackend(network="mobile0.25", landmarks=False, identity=OnnxIdentity())
    faces = backend.describe(image, [broken, whole, broken], identities=True)
    assert [face.identity is None for face in faces] == [True, False, True]
    assert backend.describe(image, [], identities=True) == []


# --- facexlib -----------------------------------------------------------------------------------------------


def test_retinaface_agrees_with_scrfd(retinaface, insightface_small, portraits, photo):
    for image in (*portraits.values(), photo):
        (face,), (witness,) = retinaface.find(image), insightface_small.find(image)
        assert np.linalg.norm(face.landmarks_5 - witness.landmarks_5, axis=1).mean() < 0.06 * face.size
        assert cosine(face, witness) > 0.9  # one identity network, two alignments
        assert face.landmarks_68 is None and face.pose is not None
    assert retinaface.find(np.full((200, 200, 3), 0.5, np.float32)) == []


def test_networks_are_loaded_once(retinaface, weights):
    retinaface.backend.search(np.zeros((64, 64, 3), np.uint8))
    opened = facexlib._network.cache_info().misses
    FacexBackend(network="mobile0.25", score_threshold=0.5).search(np.zeros((64, 64, 3), np.uint8))
    assert facexlib._network.cache_info().misses == opened


def test_heatmap_peaks_at_quarter_cell():
    maps = np.zeros((2, 2, 64, 64), np.float32)
    maps[0, 0, 10, 20], maps[0, 0, 10, 21], maps[0, 0, 9, 20] = 1, 0.5, 0.5  # right and up
    maps[0, 1, 63, 63] = 1  # where facexlib reads past the end
    maps[1, 0, 0, 0] = 1
    maps[1, 1, 30, 0], maps[1, 1, 31, 0] = 1, 0.5
    expected = [[[20.75, 10.25], [63.5, 63.5]], [[0.5, 0.5], [0.5, 30.75]]]
    np.testing.assert_allclose(peaks(maps), expected)


class FixedMaps(torch.nn.Module):
    """In place of the landmark network: heat maps with one peak for each point, whatever the input."""

    def __init__(self, cells):
        super().__init__()
        self.cells, self.batches = cells, []

    def forward(self, images):
        self.batches.append(len(images))
        maps = torch.zeros(len(images), 99, 64, 64)
        for number, (x, y) in enumerate(self.cells):
            maps[:, number, y, x] = 1
        return [None, maps], None


def test_98_landmarks_become_68(monkeypatch):
    pytest.importorskip("facexlib")
    cells = np.random.default_rng(0).integers(2, 62, (98, 2))
    net = FixedMaps(cells)
    monkeypatch.setattr(facexlib, "_opened", lambda *_: net)
    places = [Face((20.0 + n, 30 + n, 100 + n, 120 + n), 0.9, UPRIGHT_POINTS + n) for n in range(10)]
    image = np.zeros((160, 160, 3), np.float32)
    faces = FacexBackend().describe(image, places, identities=False)
    assert net.batches == [8, 2]
    view = upright_view(places[3].box, places[3].landmarks_5, 256, 1.1)
    seen = view(faces[3].landmarks_68)
    middles = cells * 4 + 1.5  # of cells of four pixels
    np.testing.assert_allclose(seen[[36, 39, 42, 45, 8, 30, 48]], middles[[60, 64, 68, 72, 16, 54, 76]], atol=1e-4)
    np.testing.assert_allclose(seen[18], (middles[34] + middles[41]) / 2, atol=1e-4)


def save_asset(folder, asset, file, state):
    (folder / asset).mkdir()
    torch.save(state, folder / asset / file)


def test_landmark_and_identity_files_run(tmp_path, monkeypatch):
    pytest.importorskip("facexlib")
    from facexlib.alignment import FAN
    from facexlib.recognition.arcface_arch import Backbone

    monkeypatch.setattr(facexlib.catalogue, "folder", lambda name: tmp_path / name)
    torch.manual_seed(0)
    score = np.float64(0.1)  # what a training script leaves beside the weights
    fan = FAN(num_modules=4, num_landmarks=98, device="cpu")
    save_asset(tmp_path, *facexlib._FAN, {"state_dict": fan.state_dict(), "best": score})
    save_asset(tmp_path, *facexlib._IR_SE50, Backbone(50, 0.6, "ir_se").state_dict())
    image = np.random.default_rng(0).uniform(size=(160, 160, 3)).astype(np.float32)
    faces = FacexBackend().describe(image, [Face((20, 30, 100, 120), 0.9, UPRIGHT_POINTS)], identities=True)
    assert all(face.landmarks_68.shape == (68, 2) and np.isfinite(face.landmarks_68).all() for face in faces)
    assert faces[0].identity.shape == (512,) and faces[0].identity_model == "facexlib_ir_se50"
    assert np.linalg.norm(faces[0].identity) == pytest.approx(1, abs=1e-5)
    crops = torch.rand(2, 3, 112, 112)
    one_by_one = np.concatenate([IrSe50().embed([crop]) for crop in crops])
    np.testing.assert_allclose(IrSe50().embed(list(crops)), one_by_one, atol=1e-4)
    facexlib._network.cache_clear()  # 70 M parameters of no further use


def test_identity_input_is_bgr(monkeypatch):
    seen = []

    def net(batch):
        seen.append(batch)
        return torch.ones(len(batch), 512)

    monkeypatch.setattr(facexlib, "_opened", lambda *_: net)
    crop = torch.tensor([1.0, 0.5, 0.0])[:, None, None].expand(3, 112, 112)
    IrSe50().embed([crop, crop])
    assert seen[0].shape == (2, 3, 112, 112) and seen[0][1, :, 5, 5].tolist() == [-1, 0, 1]


def test_bad_weights_files_are_reported(tmp_path, weights, monkeypatch):
    pytest.importorskip("facexlib")
    good = weights("retinaface_mobile025") / "mobilenet0.25_Final.pth"
    blank = np.zeros((64, 64, 3), np.uint8)
    with monkeypatch.context() as patched:
        patched.setattr(facexlib.catalogue, "folder", lambda name: tmp_path / name)
        (tmp_path / "retinaface_resnet50").mkdir()
        path = tmp_path / "retinaface_resnet50/detection_Resnet50_Final.pth"
        shutil.copy(good, path)
        with pytest.raises(ValueError, match=r"Resnet50_Final\.pth is not a readable network .*fetch retinaface_res"):
            FacexBackend().search(blank)
        path.write_bytes(good.read_bytes()[:5000])
        with pytest.raises(ValueError, match=r"Resnet50_Final\.pth is not a readable network"):
            FacexBackend().search(blank)
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path / "nothing"))
    with pytest.raises(MissingWeights, match="face2scene fetch retinaface_resnet50"):
        FacexBackend().search(blank)
    with pytest.raises(ValueError, match=r"faces\.backend\.network is 'vgg'"):
        FacexBackend(network="vgg")


def test_inverted_head_keeps_identity(insightface_small, portraits):
    (upright,) = insightface_small.find(portraits["obama"])
    flipped = np.ascontiguousarray(portraits["obama"][::-1, ::-1])
    height, width = flipped.shape[:2]
    points = [width - 1, height - 1] - upright.landmarks_5
    x0, y0, x1, y1 = upright.box
    place = Face((width - x1, height - y1, width - x0, height - y0), 1.0, points)
    (turned,) = insightface_small.backend.describe(flipped, [place], identities=True)
    assert cosine(upright, turned) > 0.99
    back = [width - 1, height - 1] - turned.landmarks_68
    assert np.linalg.norm(back - upright.landmarks_68, axis=1).mean() < 0.02 * upright.size
    view = upright_view(place.box, points, 64, 1.5)
    assert to_array(warp(to_tensor(flipped), view, (64, 64))).shape == (64, 64, 3)
