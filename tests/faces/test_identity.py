"""Reference folders, thresholds, the identity score, and head pose."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from face2scene.assets.catalogue import MissingWeights
from face2scene.common.types import Face
from face2scene.faces.calibrate import Pairs, pairs, photos, table
from face2scene.faces.detect import Detector
from face2scene.faces.identity import face_similarity
from face2scene.faces.matching import UnusableReference, known_faces, people_of, reference_face
from face2scene.faces.pose import INDICES_68, POINTS_5, POINTS_68, head_pose, with_pose
from face2scene.image_io.arrays import read_image, write_png
from face2scene.inference.tasks import find_tasks

FIVE = np.array([[30.0, 40], [70, 40], [50, 60], [35, 80], [65, 80]])


class ColourBackend:
    """A backend whose faces are coloured squares: the colour is the person, black is background."""

    identity_model = "marks"
    same_threshold = 0.9

    def search(self, image):
        found = []
        for colour in np.unique(image.reshape(-1, 3), axis=0):
            if colour.max() > 20:
                y, x = np.nonzero((image == colour).all(2))
                side = x.max() + 1 - x.min()
                box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
                found.append(Face(box, 1.0, FIVE / 100 * side + [x.min(), y.min()]))
        return found

    def describe(self, image, found, *, identities):
        faces = []
        for f in found:
            x0, y0, x1, y1 = (int(v) for v in f.box)
            vector = image[y0:y1, x0:x1].mean((0, 1)) + 1e-6
            faces.append(
                Face(
                    f.box,
                    f.score,
                    f.landmarks_5,
                    identity=vector / np.linalg.norm(vector) if identities else None,
                    identity_model="marks",
                )
            )
        return faces


def make_image(*squares, size=128):
    """Squares (colour, left, top, side) on black."""
    image = np.zeros((size, size, 3), np.float32)
    for colour, left, top, side in squares:
        image[top : top + side, left : left + side] = colour
    return image


RED, GREEN, WHITE = (1.0, 0, 0), (0, 1.0, 0), (1.0, 1, 1)


@pytest.fixture
def detector():
    return Detector(ColourBackend(), max_side=128)


@pytest.fixture
def reference_folders(tmp_path):
    """Reference folders with every kind of photo in them."""
    for name, image in {
        "ann/front": make_image((RED, 10, 10, 60)),
        "ann/crowd": make_image((RED, 5, 5, 50), (GREEN, 70, 70, 50)),
        "ann/passer-by": make_image((RED, 5, 5, 90), (GREEN, 108, 108, 18)),
        "ann/wall": make_image(),
        "bea/front": make_image((GREEN, 30, 30, 64)),
        "loose": make_image((WHITE, 30, 30, 64)),
    }.items():
        write_png(tmp_path / f"{name}.png", image)
    (tmp_path / "bea/broken.png").write_bytes((tmp_path / "bea/front.png").read_bytes()[:60])
    (tmp_path / "bea/notes.txt").write_text("not an image")
    return tmp_path


def test_reference_needs_exactly_one_face(reference_folders, detector):
    with pytest.raises(UnusableReference, match=r"No face of 16 pixels or more was found in .*wall\.png: take one"):
        reference_face(reference_folders / "ann/wall.png", detector)
    write_png(reference_folders / "small.png", make_image((GREEN, 30, 30, 14)))
    with pytest.raises(UnusableReference, match=r"No face of 16 pixels or more was found in .*small\.png: take one"):
        reference_face(reference_folders / "small.png", detector)
    with pytest.raises(UnusableReference, match=r"crowd\.png shows 2 faces: cut it to the one person"):
        reference_face(reference_folders / "ann/crowd.png", detector)
    assert reference_face(reference_folders / "ann/passer-by.png", detector).size == 90


def test_reference_folders_give_people(reference_folders, detector):
    known = known_faces(people_of(reference_folders), detector, {})
    assert {name: [path.name for path, _ in seen] for name, seen in known.seen.items()} == {
        "ann": ["front.png", "passer-by.png"],
        "bea": ["front.png"],
    }
    for name in ("ann/crowd.png", "ann/wall.png", "bea/broken.png"):
        assert sum(str(reference_folders / name) in sentence for sentence in known.warnings) == 1
    assert len(known.warnings) == 3  # loose.png is beside the folders of people and nobody's
    scene = detector.find(make_image((GREEN, 5, 5, 50), (WHITE, 70, 70, 50), (RED, 70, 5, 40)))
    assert [one.person for one in known.named(scene)] == ["bea", None, "ann"]


@pytest.mark.parametrize(
    "stray", [".thumbnails", ".ipynb_checkpoints", "@eaDir", "#recycle", ".Trash-1000/files", "$RECYCLE.BIN"]
)
def test_folders_that_programs_leave_are_nobody(tmp_path, stray):
    for name in ("1.png", f"{stray}/thumb.png"):
        write_png(tmp_path / "ann" / name, make_image())
    assert people_of(tmp_path / "ann") == {"ann": (tmp_path / "ann/1.png",)}
    assert [job.file for job in find_tasks(tmp_path / "ann")] == ["1.png"]


def test_single_photo_or_person_folder_is_one_person(reference_folders, monkeypatch):
    assert list(people_of(reference_folders / "ann")) == ["ann"]
    assert people_of(reference_folders / "loose.png") == {reference_folders.name: (reference_folders / "loose.png",)}
    monkeypatch.chdir(reference_folders / "ann")
    assert list(people_of(".")) == list(people_of("front.png")) == ["ann"]


def test_folders_without_usable_face_raise(tmp_path):
    with pytest.raises(FileNotFoundError, match="no reference photo at"):
        people_of(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no image in the folder of references"):
        people_of(tmp_path / "empty")


def test_similarity_uses_gt_face_region(detector):
    gt = make_image((RED, 10, 10, 60), (GREEN, 80, 80, 30))
    assert face_similarity(gt, gt, detector) == pytest.approx(1, abs=1e-5)
    greener = make_image(((1.0, 0.5, 0), 10, 10, 60), (GREEN, 80, 80, 30))
    assert face_similarity(greener, gt, detector) == pytest.approx(1 / np.sqrt(1.25), abs=1e-3)
    assert face_similarity(greener, gt, detector, box=(78, 78, 112, 112)) == pytest.approx(1, abs=1e-5)
    lost = make_image(((0, 0, 0.03), 10, 10, 60))  # no face to a detector; it counts all the same
    assert face_similarity(lost, gt, detector) == pytest.approx(0, abs=1e-3)
    assert face_similarity(gt, make_image(), detector) is None
    assert face_similarity(gt, gt, detector, box=(0, 100, 20, 120)) is None
    with pytest.raises(ValueError, match="is 64 x 64 and its ground truth 128 x 128"):
        face_similarity(make_image(size=64), gt, detector)


def test_similarity_falls_with_degradation(weights, photo):
    from face2scene.faces.backends.yunet_dlib import OpenBackend
    from face2scene.faces.embedding import OnnxIdentity, WithIdentityNet

    weights("yunet"), weights("dlib"), weights("w600k_mbf")
    detector = Detector(WithIdentityNet(OpenBackend(), OnnxIdentity()))

    def shrunk(factor):
        small = Image.fromarray((photo * 255).round().astype(np.uint8)).resize((512 // factor,) * 2)
        return np.asarray(small.resize((512, 512)), dtype=np.float32) / 255

    scores = [face_similarity(image, photo, detector) for image in (photo, shrunk(4), shrunk(8), shrunk(16))]
    assert scores[0] > 0.999
    assert all(better > worse + 0.03 for better, worse in pairwise(scores))


# --- thresholds ---------------------------------------------------------------------------------------------


def test_equal_error_threshold():
    apart = Pairs(np.array([0.5, 0.9]), np.array([-0.1, 0.3]))
    assert apart.equal_error() == (pytest.approx(0.4), 0.0)
    assert apart.errors(0.6) == (0.5, 0.0)
    mixed = Pairs(np.array([0.1, 0.5, 0.6, 0.7]), np.array([-0.2, 0.0, 0.2, 0.55]))
    level, share = mixed.equal_error()
    assert mixed.errors(level) == (0.25, 0.25) and share == 0.25


def test_calibration_pairs_count_once(tmp_path, detector):
    for name, colour in {"a1": RED, "a2": (1.0, 0.1, 0), "b1": GREEN, "s1": WHITE, "s2": (0, 0, 1.0)}.items():
        write_png(tmp_path / f"{name}.png", make_image((colour, 10, 10, 60)))
    people = {"ann": [tmp_path / "a1.png", tmp_path / "a2.png"], "bea": [tmp_path / "b1.png"]}
    found = pairs(people, [tmp_path / "s1.png", tmp_path / "s2.png"], detector)
    assert len(found.same) == 1 and len(found.different) == 2 + 3 * 2
    assert found.same.min() > 0.99
    assert "| marks | 1, 0.99" in table("x", "marks", 0.9, found).splitlines()[2]
    with pytest.raises(ValueError, match="two photos of one person"):
        pairs({"bea": people["bea"]}, [], detector)
    write_png(tmp_path / "wall.png", make_image())
    with pytest.raises(ValueError, match=r"two photos of one person.*No face .*wall\.png"):
        pairs({"ann": [tmp_path / "wall.png"]}, [], detector)
    for blind in (Detector(None), Detector(ColourBackend(), identities=False)):
        with pytest.raises(ValueError, match=r"faces\.identities=true"):
            pairs(people, [], blind)


def test_photos_are_found_by_asset_name(weights, monkeypatch, tmp_path):
    folder = weights("photos_face_recognition")
    assert photos(["photos_face_recognition/obama.jpg"]) == [folder / "obama.jpg"]
    assert len(photos(["photos_face_recognition"])) == 7
    monkeypatch.setenv("FACE2SCENE_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="face2scene fetch photos_face_recognition"):
        photos(["photos_face_recognition/obama.jpg"])


# --- head pose ----------------------------------------------------------------------------------------------


def projected_head(model, yaw, pitch, roll, distance=None):
    """A head turned by the angles of `faces.pose`, projected; `distance` of the camera in millimetres."""
    y, p, r = np.radians([-yaw, -pitch, roll])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    turned = model @ (about_z @ about_y @ about_x).T
    flat = turned[:, :2] if distance is None else turned[:, :2] / (1 + turned[:, 2:] / distance)
    return flat * 1.3 + [400, 250]


@pytest.mark.parametrize("model", [POINTS_5, POINTS_68], ids=["five", "of 68"])
@pytest.mark.parametrize("angles", [(0, 0, 0), (35, 0, 0), (0, -20, 0), (-50, 15, 30), (20, -10, 90), (10, 5, 179)])
def test_head_pose_is_recovered(model, angles):
    assert head_pose(projected_head(model, *angles), model) == pytest.approx(angles, abs=0.01)
    assert head_pose(projected_head(model, *angles, distance=700), model) == pytest.approx(angles, abs=9)


def test_head_pose_signs():
    straight = projected_head(POINTS_5, 0, 0, 0)
    nose = projected_head(POINTS_5, 30, 0, 0)[2] - straight[2]
    assert nose[0] > 10 and abs(nose[1]) < 1  # yaw: to the image's right
    assert (projected_head(POINTS_5, 0, 30, 0)[2] - straight[2])[1] < -10  # pitch: up
    left, right = projected_head(POINTS_5, 0, 0, 30)[:2]
    assert right[1] > left[1] + 10  # roll: clockwise


def test_head_pose_tolerates_noise():
    rng = np.random.default_rng(0)
    off = [
        np.abs(
            np.subtract(head_pose(projected_head(POINTS_68, 25, -8, 12) + rng.normal(0, 0.8, (11, 2)), POINTS_68), a)
        )
        for a in [(25, -8, 12)] * 50
    ]
    assert np.mean(off, axis=0).max() < 2.5


def test_degenerate_landmarks_have_no_pose():
    for points in (np.full((5, 2), np.nan), np.ones((5, 2)), np.outer(np.arange(5), [1.0, 2.0])):
        assert head_pose(points, POINTS_5) is None


def test_pose_prefers_68_points():
    five, many = projected_head(POINTS_5, 10, 0, 0), np.zeros((68, 2))
    many[list(INDICES_68)] = projected_head(POINTS_68, -20, 0, 0)
    assert with_pose(Face((0, 0, 9, 9), 1.0, five)).pose == pytest.approx((10, 0, 0), abs=0.01)
    assert with_pose(Face((0, 0, 9, 9), 1.0, five, many)).pose == pytest.approx((-20, 0, 0), abs=0.01)


def test_mean_shape_pose_is_near_frontal():
    from insightface.data import get_object

    mean_shape = get_object("meanshape_68.pkl")[list(INDICES_68), :2]
    yaw, pitch, roll = head_pose(mean_shape, POINTS_68)
    assert abs(yaw) < 2 and abs(roll) < 2 and abs(pitch) < 16  # what is level for a nose is a convention


def test_pose_follows_flip_and_rotation(weights):
    from face2scene.faces.backends.yunet_dlib import OpenBackend

    weights("yunet"), weights("dlib")
    detector = Detector(OpenBackend(), identities=False)
    photo = read_image(weights("photos_face_recognition") / "obama2.jpg")[:700]  # he looks to the image's left
    (face,) = detector.find(photo)
    (mirrored,) = detector.find(np.ascontiguousarray(photo[:, ::-1]))
    yaw, pitch, roll = face.pose
    assert -30 < yaw < -10 and abs(pitch) < 15
    assert mirrored.pose == pytest.approx((-yaw, pitch, -roll), abs=6)
    turned = np.asarray(
        Image.fromarray((photo * 255).astype(np.uint8)).rotate(-25, resample=Image.BICUBIC), dtype=np.float32
    )
    (tilted,) = detector.find(turned / 255)
    assert tilted.pose == pytest.approx((yaw, pitch, roll + 25), abs=6)
