"""Generated people set in front of photos of places."""

import numpy as np
from colour_identities import drawn_people, photo

from face2scene.data.generators.base import GenerationRequest
from face2scene.data.generators.in_places import PeopleInPlaces, cut_out, in_front_of


def person(side: int) -> np.ndarray:
    """Where head and shoulders are, (side, side, 1)."""
    y, x = np.mgrid[:side, :side, :1][:2] / side
    return (((x - 0.5) / 0.28) ** 2 + ((y - 0.48) / 0.38) ** 2 < 1) | ((y > 0.8) & (abs(x - 0.5) < 0.36))


def portrait() -> np.ndarray:
    """A reddish person before a green wall, 128 x 128."""
    noise = np.random.default_rng(0).normal(0, 6, (128, 128, 3))
    return (np.where(person(128), (190, 120, 100), (60, 140, 70)) + noise).clip(0, 255).astype(np.uint8)


def test_person_is_kept_and_wall_is_not():
    opacity = cut_out(portrait()) / 255
    assert opacity[128, 128].min() > 0.99 and opacity[230, 128].min() > 0.99  # face, neck
    assert opacity[:160, :40].max() < 0.01 and opacity[:160, -40:].max() < 0.01
    assert np.abs(opacity - person(256)).mean() < 0.05  # two pixels along its edge are 0.03 of the image


def test_photo_stays_outside_the_portrait():
    place = np.random.default_rng(1).random((100, 150, 3), dtype=np.float32)
    image = in_front_of(place, portrait(), left=0.5, height=0.6)
    np.testing.assert_array_equal(image[:, :75], place[:, :75])
    np.testing.assert_array_equal(image[:40], place[:40])
    middle = image[75, 75 + 30]
    assert np.abs(middle - np.array([190, 120, 100]) / 255).max() < 0.12
    assert in_front_of(place, portrait(), left=0.9, height=0.6).shape == place.shape  # reaches over the border


def test_images_of_a_person_are_in_places_in_turn(tmp_path):
    photo(tmp_path / "here/red.png", "ann", size=(120, 80))
    photo(tmp_path / "here/blue.png", "cat", size=(70, 90))
    places = [(f"{tmp_path}/here/red.png", 0.5, 0.1), (f"{tmp_path}/here/blue.png", 1.0, 0.4)]
    generator = PeopleInPlaces(drawn_people, places, 0.5)
    images = [generator.draw(GenerationRequest(3, number)) for number in range(3)]
    assert [image.shape for image in images] == [(80, 80, 3), (70, 70, 3), (80, 80, 3)]
    assert images[0][:30].mean((0, 1)).argmax() == 0 and images[1][:30].mean((0, 1)).argmax() == 2
    np.testing.assert_array_equal(images[2][:30], images[0][:30])  # the same place, above the person
    np.testing.assert_array_equal(generator.draw(GenerationRequest(3, 1)), images[1])
