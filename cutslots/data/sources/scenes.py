"""Generator of scenes of cubes, spheres and cylinders like those of CLEVR and ClevrTex.

Styles: `plain` has single-colored objects on gray ground, `textured` gives every object and the
ground a solid texture, `camouflage` covers all of them with one texture, `mixed` draws one of these
three for every scene. A scene is a pure function of (seed, index, options).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cutslots.data import raycast
from cutslots.data.raycast import Body, Texture
from cutslots.data.record import Ranges, Scene
from cutslots.data.source import Source
from cutslots.errors import InputError
from cutslots.options import option

RENDERER = 2  # increase it when pixels change: old folders are then refused and not continued
STYLES = ("plain", "textured", "camouflage")
TRIES = 200
REGION = 0.68  # object centers keep to this part of the image, in units of half its width
GAP = 0.2  # between footprints, as in CLEVR's generator; smaller for many objects
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

    def check(self) -> None:
        """Raise InputError for an empty range of objects."""
        if self.min_objects > self.max_objects:
            maximum = f"max_objects {self.max_objects}"
            raise InputError(f"min_objects must be at most {maximum}, got {self.min_objects}.")


class Scenes(Source):
    """Built-in scenes of cubes, spheres and cylinders in the style of CLEVR; needs no raw data."""

    NEEDS_RAW = False
    Options = Options

    def find(self) -> None:
        self.num_records = self.options.count

    def splits(self) -> Ranges:
        tenth, count = self.num_records // 10, self.num_records
        return {"test": (0, tenth), "val": (tenth, 2 * tenth), "train": (2 * tenth, count)}

    def describe(self, splits: Ranges) -> dict[str, Any]:
        """The version of the renderer in place of files."""
        return {"renderer": RENDERER}

    @staticmethod
    def decode(item: int, options: Any) -> Scene:
        return render(item, options)


def render(index: int, options: Options) -> Scene:
    """Scene number `index`; raises InputError if the objects do not fit side by side."""
    rng = np.random.default_rng((options.seed, index))
    style = options.style if options.style != "mixed" else STYLES[rng.integers(len(STYLES))]
    bodies, mask = _arrange(rng, options)
    ground, bodies, looks = _dress(rng, style, bodies)
    # The lamp is high, on the left and on the viewer's side.
    around, height = math.radians(rng.uniform(195, 255)), math.radians(rng.uniform(48, 60))
    flat = math.cos(height)
    lamp = np.array([flat * math.cos(around), flat * math.sin(around), math.sin(height)])
    # Four rays a pixel.
    fine = raycast.rays(2 * options.size)
    color = raycast.shade(fine, *raycast.trace(fine, bodies), bodies, ground, lamp)
    quarter = color[:, ::2] + color[:, 1::2]
    image = np.rint((quarter[..., ::2] + quarter[..., 1::2]) * (255 / 4)).astype(np.uint8)
    image = np.ascontiguousarray(image.transpose(1, 2, 0))
    objects = []
    for body, look in zip(bodies, looks, strict=True):
        across, down, depth = raycast.project(body.center)
        pixel = ((across + 1) * options.size / 2, (down + 1) * options.size / 2)
        objects.append(
            {
                "shape": body.shape,
                "size": round(body.radius, 4),
                **look,
                "position": [round(value, 4) for value in body.center],
                "rotation": round(math.degrees(body.rotation), 2),
                "pixel_coords": [*(round(value, 2) for value in pixel), round(depth, 4)],
            }
        )
    return Scene(f"{style}_{index:06d}", image, mask, tuple(objects))


def _arrange(rng: np.random.Generator, options: Options) -> tuple[list[Body], np.ndarray]:
    """Bodies of which no two touch and each is visible, and their mask."""
    number = int(rng.integers(options.min_objects, options.max_objects + 1))
    shrink = min(1.0, 2 / math.sqrt(number))
    bare = Texture("uniform", np.zeros((2, 3)))
    for _ in range(TRIES):
        bodies: list[Body] = []
        for _ in range(30 * number):
            radius = float(rng.uniform(*RADIUS)) * shrink
            shape = raycast.SHAPES[rng.integers(len(raycast.SHAPES))]
            at = rng.uniform(-REGION, REGION, 2).tolist()
            x, y = raycast.unproject(*at, height=0.8 * radius)
            body = Body(shape, x, y, radius, float(rng.uniform(0, 2 * math.pi)), bare)
            if all(
                math.hypot(x - other.x, y - other.y) >= radius + other.radius + GAP * shrink**3
                for other in bodies
            ):
                bodies.append(body)
            if len(bodies) == number:
                break
        else:
            continue
        mask, _ = raycast.trace(raycast.rays(options.size), bodies)
        areas = np.bincount(mask.reshape(-1), minlength=number + 1)[1:]
        if areas.min() >= VISIBLE * shrink**2 * mask.size:
            return bodies, mask
    raise InputError(f"{number} objects did not fit in {TRIES} tries. Use a smaller max_objects.")


def _dress(
    rng: np.random.Generator, style: str, bodies: list[Body]
) -> tuple[Texture, list[Body], list[dict[str, Any]]]:
    """The ground's texture, the bodies with texture and material, and the metadata of these."""
    colors: list[str] = []
    if style == "plain":
        ground = Texture("uniform", np.full((2, 3), rng.uniform(0.55, 0.68)))
        order = rng.permutation(max(len(PALETTE), len(bodies)))[: len(bodies)]
        colors = [list(PALETTE)[number % len(PALETTE)] for number in order]
        textures = [Texture("uniform", np.array([PALETTE[color]] * 2) / 255) for color in colors]
    elif style == "textured":
        ground, *textures = (_texture(rng) for _ in range(len(bodies) + 1))
    else:
        ground = _texture(rng)
        textures = [replace(ground, phase=tuple(rng.uniform(0, 8, 3).tolist())) for _ in bodies]
    materials = ["rubber"] * len(bodies)
    if style != "camouflage":
        materials = rng.choice(list(MATERIALS), len(bodies)).tolist()
    dressed, looks = [], []
    for number, body in enumerate(bodies):
        texture, material = textures[number], materials[number]
        shine, gloss = MATERIALS[material]
        dressed.append(replace(body, texture=texture, shine=shine, gloss=gloss))
        if colors:
            looks.append({"color": colors[number], "material": material})
        else:
            rgb = (texture.colors * 255).round().astype(int).tolist()
            looks.append({"material": f"{material} {texture.kind}", "colors": rgb})
    return ground, dressed, looks


def _texture(rng: np.random.Generator) -> Texture:
    """A random texture of two colors that differ clearly."""
    kind = raycast.TEXTURES[rng.integers(len(raycast.TEXTURES))]
    colors = rng.uniform(0.08, 0.95, (2, 3))
    while np.abs(colors[0] - colors[1]).sum() < 0.8:
        colors = rng.uniform(0.08, 0.95, (2, 3))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    lattice = rng.random((8, 8, 8), np.float32) if kind == "noise" else None
    phase = tuple(rng.uniform(0, 8, 3).tolist())
    frequency = float(rng.uniform(*((4.0, 7.0) if kind == "noise" else (2.5, 4.5))))
    return Texture(kind, colors, frequency, phase, tuple(direction.tolist()), lattice)
