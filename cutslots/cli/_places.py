"""Prepared data as a person names them."""

from pathlib import Path

from cutslots.files import home


def place(where: str) -> Path | str:
    """The path or URI that was given, or else the folder of that name in `CUTSLOTS_HOME/data`."""
    from cutslots.data.locate import is_uri

    stored = home() / "data" / where
    return stored if not is_uri(where) and not Path(where).exists() and stored.exists() else where
