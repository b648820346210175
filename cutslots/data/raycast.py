"""A small ray caster: spheres, boxes and cylinders on a ground plane, solid textures, soft shadows.

The fixed camera looks at the origin of the ground plane z = 0, where the image is 2 units wide: a
body of radius 0.25 there covers an eighth of the image's width on either side of its center. Points
and directions are float32 arrays (3, ...).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

SHAPES = ("cube", "sphere", "cylinder")
TEXTURES = ("checker", "stripes", "dots", "noise")

ELEVATION, FIELD_OF_VIEW = math.radians(40), math.radians(24)
_SPREAD = math.tan(FIELD_OF_VIEW / 2)
_FORWARD = np.array([0, math.cos(ELEVATION), -math.sin(ELEVATION)])
_RIGHT = np.array([1.0, 0, 0])
_UP = np.cross(_RIGHT, _FORWARD)
EYE = -_FORWARD / _SPREAD

# For a shape of radius 1: half its height, and the radius of its bounding sphere.
_HALF = {"cube": math.sqrt(0.5), "sphere": 1.0, "cylinder": 0.85}
_BOUND = {"cube": math.sqrt(1.5), "sphere": 1.0, "cylinder": 0.85 * math.sqrt(2)}


@dataclass(frozen=True)
class Texture:
    """A solid texture: `colors[0]` and `colors[1]` mixed by a pattern in space."""

    kind: str  # "uniform" (color 0 only) or one of TEXTURES
    colors: np.ndarray  # float32 (2, 3), RGB in [0, 1]
    frequency: float = 1.0  # cells, or periods, in one unit of length
    phase: tuple[float, float, float] = (0.0, 0.0, 0.0)  # shift of the pattern, in cells
    direction: tuple[float, float, float] = (1.0, 0.0, 0.0)  # unit normal of the stripes
    lattice: np.ndarray | None = None  # float32 (8, 8, 8) in [0, 1], the values of the noise


@dataclass(frozen=True)
class Body:
    """One object on the ground; bodies whose footprints do not overlap do not touch."""

    shape: str  # one of SHAPES
    x: float  # x, y: position on the ground
    y: float
    radius: float  # of the footprint
    rotation: float  # about the vertical, in radians
    texture: Texture  # in the body's coordinates
    shine: float = 0.0  # strength of the highlight, 0 to 1
    gloss: float = 1.0  # exponent of the highlight

    @property
    def center(self) -> tuple[float, float, float]:
        """World position of the center."""
        return self.x, self.y, self.half

    @property
    def half(self) -> float:
        """Half its height; a sphere's radius, a box's half side."""
        return self.radius * _HALF[self.shape]

    def local(self, vector: np.ndarray) -> np.ndarray:
        """World directions (3, ...) in the body's axes."""
        return self.world(vector, -1)

    def world(self, vector: np.ndarray, sign: int = 1) -> np.ndarray:
        """Directions (3, ...) in the body's axes, in the world's: turned about the vertical."""
        x, y, z = vector
        cosine, sine = math.cos(sign * self.rotation), math.sin(sign * self.rotation)
        return np.stack([cosine * x - sine * y, sine * x + cosine * y, z])


@dataclass(frozen=True)
class Rays:
    """One ray through the center of every pixel of a square image, and where it hits the ground."""

    directions: np.ndarray  # float32 (3, n, n), unit vectors
    reach: np.ndarray  # float32 (n, n), distance to the ground
    ground: np.ndarray  # float32 (3, n, n), the points there


@lru_cache(maxsize=4)
def rays(size: int) -> Rays:
    """The camera's rays for an image of size x size pixels."""
    steps = (np.arange(size) + 0.5) * (2 / size) - 1
    across, down = steps[None, None, :], steps[None, :, None]
    toward = _column(_FORWARD) + _SPREAD * (across * _column(_RIGHT) - down * _column(_UP))
    toward = toward / np.linalg.norm(toward, axis=0)
    reach = -EYE[2] / toward[2]
    ground = _column(EYE) + reach * toward
    return Rays(toward.astype(np.float32), reach.astype(np.float32), ground.astype(np.float32))


def project(point: tuple[float, float, float]) -> tuple[float, float, float]:
    """Image position of a world point: across and down, -1 to 1, and depth along the camera."""
    offset = np.asarray(point) - EYE
    depth = float(offset @ _FORWARD)
    scale = depth * _SPREAD
    return float(offset @ _RIGHT) / scale, -float(offset @ _UP) / scale, depth


def unproject(across: float, down: float, height: float) -> tuple[float, float]:
    """The (x, y) where the ray through an image position passes `height`."""
    toward = _FORWARD + _SPREAD * (across * _RIGHT - down * _UP)
    point = EYE + toward * ((height - EYE[2]) / toward[2])
    return float(point[0]), float(point[1])


def trace(view: Rays, bodies: list[Body]) -> tuple[np.ndarray, np.ndarray]:
    """What every ray meets first: uint8 (n, n) ids and float32 (n, n) distances.

    Id 0 is the ground, id k is bodies[k - 1].
    """
    ids = np.zeros(view.reach.shape, np.uint8)
    reach = view.reach.copy()
    for number, body in enumerate(bodies, start=1):
        window = _window(body, len(ids))
        eye, toward = _column(EYE - body.center), view.directions[:, *window]
        distance = _hit(body, body.local(eye), body.local(toward))
        closer = distance < reach[window]
        np.copyto(reach[window], distance, where=closer)
        ids[window][closer] = number
    return ids, reach


def shade(
    view: Rays,
    ids: np.ndarray,
    reach: np.ndarray,
    bodies: list[Body],
    ground: Texture,
    light: np.ndarray,
) -> np.ndarray:
    """The color of every ray, float32 (3, n, n) in [0, 1]; `light` is the direction to the lamp."""
    color = _texture_color(ground, view.ground)
    color *= 0.42 + 0.62 * float(light[2]) * _lit(view.ground, bodies, light)
    for number, body in enumerate(bodies, start=1):
        window = _window(body, len(ids))
        seen = ids[window] == number
        direction = view.directions[:, *window][:, seen]
        point = _column(EYE).astype(np.float32)[:, 0] + reach[window][seen] * direction
        lit = _lit(point, [other for other in bodies if other is not body], light)
        # Diffuse and ambient light (weaker below) on the texture, and a highlight.
        local = body.local(point - np.array(body.center, np.float32)[:, None])
        normal = body.world(_normal(body, local))
        facing = np.maximum(_dot(light, normal), 0) * lit
        surface = _texture_color(body.texture, local) * (0.3 + 0.18 * normal[2] + 0.78 * facing)
        if body.shine:
            middle = light.astype(np.float32)[:, None] - direction
            cosine = np.maximum(_dot(normal, middle), 0) / np.sqrt(_dot(middle, middle))
            surface += body.shine * lit * cosine**body.gloss
        color[:, *window][:, seen] = surface
    return np.clip(color, 0, 1, out=color)


def _normal(body: Body, point: np.ndarray) -> np.ndarray:
    """Outward unit normals at points (3, n) of the body's surface, both in the body's axes."""
    if body.shape == "sphere":
        return point / body.radius
    normal = np.zeros_like(point)
    if body.shape == "cube":
        axis = np.abs(point).argmax(0)
        column = np.arange(len(axis))
        normal[axis, column] = np.sign(point[axis, column])
        return normal
    top = point[2] > body.half * 0.999
    normal[:2] = np.where(top, 0, point[:2] / body.half)
    normal[2] = top
    return normal


def _lit(point: np.ndarray, bodies: list[Body], light: np.ndarray) -> np.ndarray:
    """The part of the light that reaches points (3, ...); shadows are those of soft balls."""
    lit = np.ones(point.shape[1:], np.float32)
    for body in bodies:
        across, along, up = (float(value) - point[axis] for axis, value in enumerate(body.center))
        ahead = across * float(light[0]) + along * float(light[1]) + up * float(light[2])
        off = np.sqrt(np.maximum(across * across + along * along + up * up - ahead * ahead, 0))
        open_ = np.clip(off * (1 / (0.7 * body.radius)) - 0.85, 0, 1)
        lit *= 1 - 0.75 * (1 - open_ * open_ * (3 - 2 * open_)) * (ahead > 0)
    return lit


def _texture_color(texture: Texture, point: np.ndarray) -> np.ndarray:
    """The texture's color (3, ...) at points (3, ...)."""
    first, second = (
        color.astype(np.float32).reshape(3, *[1] * (point.ndim - 1)) for color in texture.colors
    )
    if texture.kind == "uniform":
        return np.broadcast_to(first, point.shape).copy()
    cells = point * texture.frequency
    for axis, shift in enumerate(texture.phase):
        cells[axis] += shift
    corner = np.floor(cells)
    if texture.kind == "checker":
        pattern = (corner[0] + corner[1] + corner[2]) % 2
    elif texture.kind == "stripes":
        wave = np.sin(_dot(np.array(texture.direction), cells) * (2 * math.pi))
        pattern = np.clip(0.5 + 2 * wave, 0, 1)
    elif texture.kind == "dots":
        off = cells - corner - 0.5
        pattern = np.clip(5 * (0.42 - np.sqrt(_dot(off, off))) + 0.5, 0, 1)
    else:
        assert texture.lattice is not None
        pattern = _noise(texture.lattice.reshape(-1), corner.astype(np.int32), cells - corner)
    return first + (second - first) * pattern


def _noise(lattice: np.ndarray, corner: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Value noise: the lattice, repeated every 8 cells, interpolated by smooth steps."""
    part = part * part * (3 - 2 * part)
    low, high = corner & 7, (corner + 1) & 7
    total = np.zeros(part.shape[1:], np.float32)
    for a, u in ((low[0], 1 - part[0]), (high[0], part[0])):
        for b, v in ((low[1], 1 - part[1]), (high[1], part[1])):
            base, weight = a * 64 + b * 8, u * v
            near, far = lattice[base + low[2]], lattice[base + high[2]]
            total += weight * (near * (1 - part[2]) + far * part[2])
    return np.clip(3 * (total - 0.5) + 0.5, 0, 1)


def _hit(body: Body, eye: np.ndarray, toward: np.ndarray) -> np.ndarray:
    """Distance along unit rays (3, ...) from `eye` (3, 1, 1), in the body's axes; inf = no hit."""
    if body.shape == "sphere":
        along = _dot(eye.reshape(3), toward)
        inside = along * along - (float((eye * eye).sum()) - body.radius**2)
        return np.where(inside > 0, -along - np.sqrt(np.maximum(inside, 0)), np.inf)
    if body.shape == "cube":  # by slabs
        with np.errstate(divide="ignore"):
            scale = 1 / toward
        origin = eye.astype(np.float32)
        first, second = (-body.half - origin) * scale, (body.half - origin) * scale
        near, far = np.minimum(first, second).max(0), np.maximum(first, second).min(0)
        return np.where(near < far, near, np.inf)
    # The camera is above every body, so a ray enters a cylinder by the top or the side.
    x, y, z = (float(part) for part in eye.reshape(3))
    top = (body.half - z) / toward[2]
    on_top = (x + top * toward[0]) ** 2 + (y + top * toward[1]) ** 2 < body.half**2
    square = toward[0] * toward[0] + toward[1] * toward[1]
    along = x * toward[0] + y * toward[1]
    inside = along * along - square * (x * x + y * y - body.half**2)
    side = (-along - np.sqrt(np.maximum(inside, 0))) / square
    # The margin closes the gap between top and side, where float32 misses both.
    on_side = (inside > 0) & (np.abs(z + side * toward[2]) <= body.half * 1.0001)
    return np.where(on_top, top, np.where(on_side, side, np.inf))


def _window(body: Body, size: int) -> tuple[slice, slice]:
    """Rows and columns of an image that contain the whole body."""
    across, down, depth = project(body.center)
    bound = body.radius * _BOUND[body.shape]
    reach = 1.1 * bound / ((depth - bound) * _SPREAD)

    def span(middle: float) -> slice:
        ends = (middle - reach + 1) * size / 2, (middle + reach + 1) * size / 2
        return slice(max(0, min(size, math.floor(ends[0]))), max(0, min(size, math.ceil(ends[1]))))

    return span(down), span(across)


def _column(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector).reshape(3, 1, 1)


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Scalar product of two (3, ...) arrays, or of a constant (3,) and a (3, ...) array."""
    parts = [float(part) for part in first] if first.ndim == 1 else first
    return parts[0] * second[0] + parts[1] * second[1] + parts[2] * second[2]
