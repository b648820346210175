"""Data: raw dataset -> prepared shards -> batches."""

from typing import TYPE_CHECKING, Any

from cutslots.data.locate import find_dataset as find_dataset
from cutslots.data.locate import is_uri as is_uri
from cutslots.data.locate import local as local
from cutslots.data.locate import read_manifest as read_manifest
from cutslots.data.manifest import Manifest as Manifest
from cutslots.data.prepare import prepare as prepare
from cutslots.data.record import Scene as Scene
from cutslots.data.shards import check as check
from cutslots.data.sources import dataset_name as dataset_name

if TYPE_CHECKING:
    from cutslots.data.batches import Batch as Batch
    from cutslots.data.batches import Batches as Batches


def __getattr__(name: str) -> Any:
    """Import torch, which takes seconds, only for batches: worker processes do not need it."""
    if name in ("Batch", "Batches"):
        from cutslots.data import batches

        return getattr(batches, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
