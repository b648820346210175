"""Procedural scenes of cubes, spheres and cylinders in the manner of CLEVR and ClevrTex; needs no raw data.

Styles: `plain` has single-coloured objects on grey ground, `textured` gives every object and the ground a solid texture
of its own, `camouflage` covers all of them with one texture, `mixed` draws one of these three for every scene. A scene
is a pure function of (seed, index, options).
"""

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cutslots.data import raycast
from cutslots.data.places import Place
from cutslots.data.raycast import Body, Texture
from cutslots.data.scene import Ranges, Scene
from cutslots.data.sources import indices
from cutslots.errors import InputError
from cutslots.options import option

NEEDS_RAW = False
RENDERER = 2  # raise it with every change that alters pixels: a folder of the old ones is then not continued by accident
STYLES = ("plain", "textured", "camouflage")
TRIES = 200
PLACE = 0.68  # object centres keep to this part of the image, in units of half its width
GAP = 0.2  # between footprints, as CLEVR's generator keeps its objects apart; less where many must fit
RADIUS = (0.25, 0.4)  # an eighth to a fifth of the image's width
VISIBLE = 0.015  # of the image's pixels, for the largest radii

# The eight object colours of CLEVR's generator, RGB.
PALETTE = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
MATERIALS = {"rubber": (0.06, 8.0), "metal": (0.75, 60.0)}


@dataclass(frozen=True)
class Options:
    """What the scenes look like."""

    count: int = option(
        4000,
        "scenes over all splits: the first 10 % test, the next 10 % val, the rest train",
        low=10,
    )
    seed: int = option(0, "seed of the scenes", low=0)
    style: str = option("plain", "look of ground and objects", choices=(*STYLES, "mixed"))
    size: int = option(64, "side of the square image, in pixels", low=16, high=1024)
    min_objects: int = option(2, "fewest objects in a scene", low=1, high=10)
    max_objects: int = option(3, "most objects in a scene", low=1, high=10)


def find(raw: Place | None, options: Options) -> None:
    """There are no files.

    Raises:
        InputError: the options contradict each other.
    """
    if options.min_objects > options.max_objects:
        raise InputError(
            f"min_objects is {options.min_objects}, more than max_objects {options.max_objects}. Raise max_objects."
        )


def splits(found: None, options: Options) -> Ranges:
    """The first tenth is for testing and the second for validation, as in ClevrTex."""
    tenth = options.count // 10
    return {"test": (0, tenth), "val": (tenth, 2 * tenth), "train": (2 * tenth, options.count)}


def describe(found: None, options: Options, splits: Ranges) -> dict[str, Any]:
    """The renderer's version stands for the files that there are not."""
    return {"renderer": RENDERER}


def records(
    found: None, options: Options, splits: Ranges, done: dict[str, int]
) -> Generator[tuple[str, int], None, int]:
    """The numbers of the scenes of every range, as far as `count` goes."""
    yield from indices(splits, done, options.count)
    return options.count


def decode(item: int, options: Options) -> Scene:
    """The scene of this number."""
    return render(item, options)


def render(index: int, options: Options) -> Scene:
    """Scene number `index`.

    Raises:
        InputError: so many objects do not fit side by side.
    """
    rng = np.random.default_rng((options.seed, index))
    style = options.style if options.style != "mixed" else STYLES[rng.integers(len(STYLES))]
    bodies, mask = _arrange(rng, options)
    ground, bodies, looks = _dress(rng, style, bodies)
    fine = raycast.rays(2 * options.size)
    color = raycast.shade(fine, *raycast.trace(fine, bodies), bodies, ground, _lamp(rng))
    quarter = color[:, ::2] + color[:, 1::2]
    image = np.rint((quarter[..., ::2] + quarter[..., 1::2]) * (255 / 4)).astype(np.uint8)
    objects = tuple(
        _describe(body, look, options.size) for body, look in zip(bodies, looks, strict=True)
    )
    return Scene(
        f"{style}_{index:06d}", np.ascontiguousarray(image.transpose(1, 2, 0)), mask, objects
    )


def _arrange(rng: np.random.Generator, options: Options) -> tuple[list[Body], np.ndarray]:
    """Shapes and places such that no two bodies touch and everyone is seen, and the mask that shows it."""
    number = int(rng.integers(options.min_objects, options.max_objects + 1))
    shrink = min(1.0, 2 / math.sqrt(number))
    for _ in range(TRIES):
        bodies = _scatter(rng, number, shrink)
        if bodies is None:
            continue
        mask, _reach = raycast.trace(raycast.rays(options.size), bodies)
        areas = np.bincount(mask.reshape(-1), minlength=number + 1)[1:]
        if areas.min() >= VISIBLE * shrink**2 * mask.size:
            return bodies, mask
    raise InputError(
        f"found no place for {number} objects in {TRIES} tries. Use a smaller max_objects."
    )


def _scatter(rng: np.random.Generator, number: int, shrink: float) -> list[Body] | None:
    """Bodies at random places whose footprints part, or None when one found no room."""
    bodies: list[Body] = []
    bare = Texture("uniform", np.zeros((2, 3)))
    for _ in range(30 * number):
        radius = float(rng.uniform(*RADIUS)) * shrink
        shape = raycast.SHAPES[rng.integers(len(raycast.SHAPES))]
        x, y = raycast.unproject(*rng.uniform(-PLACE, PLACE, 2).tolist(), height=0.8 * radius)
        body = Body(shape, x, y, radius, float(rng.uniform(0, 2 * math.pi)), bare)
        if all(
            math.hypot(x - other.x, y - other.y) >= radius + other.radius + GAP * shrink**3
            for other in bodies
        ):
            bodies.append(body)
        if len(bodies) == number:
            return bodies
    return None


def _dress(
    rng: np.random.Generator, style: str, bodies: list[Body]
) -> tuple[Texture, list[Body], list[dict[str, Any]]]:
    """The ground's texture, the bodies with theirs, and the words for it."""
    if style == "plain":
        ground = Texture("uniform", np.full((2, 3), rng.uniform(0.55, 0.68)))
        colors = [
            list(PALETTE)[number % len(PALETTE)]
            for number in rng.permutation(max(len(PALETTE), len(bodies)))
        ]
        textures = [
            Texture("uniform", np.array([PALETTE[color]] * 2) / 255)
            for color in colors[: len(bodies)]
        ]
        materials = [str(material) for material in rng.choice(list(MATERIALS), len(bodies))]
        looks: list[dict[str, Any]] = [
            {"color": color, "material": material}
            for color, material in zip(colors, materials, strict=False)
        ]
    elif style == "textured":
        ground, *textures = (_texture(rng) for _ in range(len(bodies) + 1))
        materials = [str(material) for material in rng.choice(list(MATERIALS), len(bodies))]
        looks = [
            {
                "material": f"{material} {texture.kind}",
                "colors": (texture.colors * 255).round().astype(int).tolist(),
            }
            for texture, material in zip(textures, materials, strict=True)
        ]
    else:
        ground = _texture(rng)
        textures = [replace(ground, phase=tuple(rng.uniform(0, 8, 3).tolist())) for _ in bodies]
        materials = ["rubber"] * len(bodies)
        looks = [
            {
                "material": f"rubber {ground.kind}",
                "colors": (ground.colors * 255).round().astype(int).tolist(),
            }
        ] * len(bodies)
    dressed = []
    for body, texture, material in zip(bodies, textures, materials, strict=True):
        shine, gloss = MATERIALS[material]
        dressed.append(replace(body, texture=texture, shine=shine, gloss=gloss))
    return ground, dressed, looks


def _texture(rng: np.random.Generator) -> Texture:
    """A random texture whose two colours are easy to tell apart."""
    kind = raycast.TEXTURES[rng.integers(len(raycast.TEXTURES))]
    colors = rng.uniform(0.08, 0.95, (2, 3))
    while np.abs(colors[0] - colors[1]).sum() < 0.8:
        colors = rng.uniform(0.08, 0.95, (2, 3))
    slowest, fastest = {"noise": (4.0, 7.0)}.get(kind, (2.5, 4.5))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    lattice = rng.random((8, 8, 8), np.float32) if kind == "noise" else None
    phase = rng.uniform(0, 8, 3)
    return Texture(
        kind,
        colors,
        float(rng.uniform(slowest, fastest)),
        tuple(phase.tolist()),
        tuple(direction.tolist()),
        lattice,
    )


def _lamp(rng: np.random.Generator) -> np.ndarray:
    """Unit vector towards the lamp: high, on the left and on the viewer's side."""
    around, height = math.radians(rng.uniform(195, 255)), math.radians(rng.uniform(48, 60))
    return np.array(
        [math.cos(height) * math.cos(around), math.cos(height) * math.sin(around), math.sin(height)]
    )


def _describe(body: Body, look: dict[str, Any], size: int) -> dict[str, Any]:
    across, down, depth = raycast.project(body.center)
    return {
        "shape": body.shape,
        "size": round(body.radius, 4),
        **look,
        "position": [round(value, 4) for value in body.center],
        "rotation": round(math.degrees(body.rotation), 2),
        "pixel_coords": [
            round((across + 1) * size / 2, 2),
            round((down + 1) * size / 2, 2),
            round(depth, 4),
        ],
    }
