"""The built-in scenes: deterministic, masks that match the image; the ray caster's geometry."""

import itertools
import math

import numpy as np
import pytest

from cutslots import options as options_module
from cutslots.data import raycast
from cutslots.data.raycast import Body, Texture
from cutslots.data.sources import scenes
from cutslots.errors import InputError

GREY = Texture("uniform", np.full((2, 3), 0.5))


@pytest.mark.parametrize("style", [*scenes.STYLES, "mixed"])
def test_scenes_of_every_style(style: str) -> None:
    options = scenes.Options(style=style, size=32, min_objects=1, max_objects=4)
    numbers, images = set(), set()
    for index in range(25):
        scene = scenes.render(index, options)
        again = scenes.render(index, options)
        np.testing.assert_array_equal(scene.image, again.image)
        np.testing.assert_array_equal(scene.mask, again.mask)
        assert scene.objects == again.objects
        assert scene.image.shape == (32, 32, 3)
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        areas = np.bincount(scene.mask.reshape(-1))
        assert len(areas) == len(scene.objects) + 1, "ids have no gaps"
        assert areas[1:].min() >= scenes.VISIBLE * 32 * 32
        pixels = [value for entry in scene.objects for value in entry["pixel_coords"][:2]]
        assert all(0 <= value <= 32 for value in pixels)
        for one, other in itertools.combinations(scene.objects, 2):
            distance = math.dist(one["position"][:2], other["position"][:2])
            assert distance > one["size"] + other["size"], "objects do not touch"
        numbers.add(len(scene.objects))
        images.add(scene.image.tobytes())
    assert numbers == {1, 2, 3, 4}
    assert len(images) == 25


def test_plain_objects_have_the_color_of_their_metadata() -> None:
    options = scenes.Options(size=64)
    for index in range(20):
        scene = scenes.render(index, options)
        ground = scene.image[scene.mask == 0].astype(int)
        assert (np.ptp(ground, axis=1) > 0).mean() < 0.1, "gray, except on objects' outlines"
        for number, entry in enumerate(scene.objects, start=1):
            seen = np.median(scene.image[scene.mask == number], axis=0)
            true = np.array(scenes.PALETTE[entry["color"]])
            assert seen @ true / (np.linalg.norm(seen) * np.linalg.norm(true)) > 0.97


def test_camouflage_shares_one_material() -> None:
    scene = scenes.render(0, scenes.Options(style="camouflage", size=32))
    assert len({str((entry["material"], entry["colors"])) for entry in scene.objects}) == 1


def test_splits_and_resume() -> None:
    source = scenes.Scenes(None, scenes.Options(count=45, size=16))
    source.find()
    assert source.splits() == {"test": (0, 4), "val": (4, 8), "train": (8, 45)}
    rest = source.records(source.splits(), {"test": 4, "val": 2, "train": 35})
    assert list(rest) == [("val", 6), ("val", 7), ("train", 43), ("train", 44)]
    assert source.decode(43, source.options).id == "plain_000043"


def test_impossible_options_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="min_objects must be at most max_objects 3, got 4"):
        options_module.check(scenes.Options(min_objects=4))
    monkeypatch.setattr(scenes, "GAP", 1.5)
    with pytest.raises(InputError, match="9 objects did not fit in 200 tries"):
        scenes.render(0, scenes.Options(min_objects=9, max_objects=9))


@pytest.mark.parametrize("shape", raycast.SHAPES)
def test_rays_hit_the_surface(shape: str) -> None:
    """At a hit the shape's inequality holds with equality, and no earlier point is inside."""
    body = Body(shape, 0.2, -0.1, 0.5, 0.7, GREY)
    view = raycast.rays(64)
    ids, reach = raycast.trace(view, [body])
    assert ids.sum() > 200

    def outside(distance: np.ndarray) -> np.ndarray:
        point = raycast.EYE[:, None] + distance * view.directions[:, ids == 1].astype(float)
        local = np.abs(body.local(point - np.array(body.center)[:, None])) / body.half
        if shape == "sphere":
            return np.linalg.norm(local, axis=0) - 1
        if shape == "cube":
            return local.max(0) - 1
        return np.maximum(np.hypot(local[0], local[1]), local[2]) - 1

    entry = reach[ids == 1].astype(float)
    np.testing.assert_allclose(outside(entry), 0, atol=1e-4)
    for part in np.linspace(0.5, 0.999, 20):
        assert outside(part * entry).min() > -1e-4
    under = np.abs(view.ground[0] - body.x) < body.radius / 4
    under &= np.abs(view.ground[1] - body.y) < 0.1
    assert ids[under].all(), "a ray to the ground under the body hits the body first"


def test_bodies_have_no_holes() -> None:
    """A pixel that differs from its four equal neighbors would be a hole between two faces."""
    options = scenes.Options(size=128, min_objects=5, max_objects=10)
    for index in (*range(5), 11):
        mask = scenes.render(index, options).mask
        up, down, inner = mask[:-2, 1:-1], mask[2:, 1:-1], mask[1:-1, 1:-1]
        left, right = mask[1:-1, :-2], mask[1:-1, 2:]
        assert not ((up == down) & (up == left) & (up == right) & (inner != up)).any()


def test_the_nearer_body_hides_the_other() -> None:
    front, back = Body("sphere", 0, -0.3, 0.3, 0, GREY), Body("sphere", 0, 0.35, 0.3, 0, GREY)
    view = raycast.rays(64)
    (one, _), (other, _) = raycast.trace(view, [front, back]), raycast.trace(view, [back, front])
    np.testing.assert_array_equal(one > 0, other > 0)
    np.testing.assert_array_equal(one == 1, other == 2)
    np.testing.assert_array_equal(one == 1, raycast.trace(view, [front])[0] == 1)
