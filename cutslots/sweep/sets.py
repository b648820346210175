"""Where a sweep's prepared data lie, and the built-in scenes that are made when they are missing."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutslots import data, options
from cutslots.data.places import Place, is_uri
from cutslots.errors import InputError
from cutslots.files import home
from cutslots.sweep.spec import Sweep

DATA = "CUTSLOTS_DATA"
STAND_IN = {"count": 400, "style": "textured"}


def find_set(name: str) -> Path | str | None:
    """A prepared set by its name: in CUTSLOTS_DATA, which may be a URI, else in CUTSLOTS_HOME/data; None when it is in neither."""
    base = os.environ.get(DATA)
    places = [f"{base.rstrip('/')}/{name}" if is_uri(base) else Path(base) / name] if base else []
    for where in (*places, home() / "data" / name):
        if (Place.of(where) / "manifest.json").exists:
            return where if is_uri(where) else Path(where).absolute()
    return None


def find_or_make(sweep: Sweep, given: str | None, stand_in: bool) -> Path | str:
    """A sweep's prepared set.

    Args:
        given: a folder or URI that a person named.
        stand_in: whether built-in scenes may stand in for a set of images that is not prepared.

    Raises:
        InputError: it is not prepared.
    """
    if given:
        return given if is_uri(given) else Path(given).absolute()
    found = find_set(sweep.dataset)
    if found is not None:
        _check_made(sweep, found)
        return found
    if sweep.dataset.partition("-")[0] == "scenes":
        return _make(sweep.dataset, sweep.make)
    if stand_in and getattr(sweep.base.model, "frames", 1) == 1:
        return find_set("scenes-smoke") or _make("scenes-smoke", STAND_IN)
    raise InputError(
        f"no prepared set {sweep.dataset!r} in {DATA} ({os.environ.get(DATA) or 'not set'}) or {home() / 'data'}. "
        f"Prepare it (cutslots prepare SOURCE RAW {home() / 'data' / sweep.dataset}), or name its folder or URI with --data."
    )


def _check_made(sweep: Sweep, found: Path | str) -> None:
    """Refuse a set of that name which was made otherwise than the sweep makes it."""
    stored = data.manifest(found).options
    wrong = [
        f"{name} is {stored.get(name)}, not {value}"
        for name, value in sweep.make.items()
        if stored.get(name) != value
    ]
    if wrong:
        raise InputError(
            f"{found} is not the set that sweep {sweep.name!r} makes: {'; '.join(wrong)}. "
            f"Take it nevertheless: --data {found}. Or move it away, and the sweep makes its own."
        )


def _make(name: str, make: Mapping[str, Any]) -> Path:
    from cutslots.data.sources import scenes
    from cutslots.sweep.prepare import prepare

    out, settings = home() / "data" / name, scenes.Options()
    for option, value in make.items():
        settings = options.override(settings, f"{option}={value}")
    print(f"making {settings.count:,} built-in scenes in {out}", file=sys.stderr)
    prepare("scenes", None, out, settings, workers=os.cpu_count())
    return out
