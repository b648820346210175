"""Models, one per file; the file's name is the model's name. To add a model:

1. Write `Config`, a frozen dataclass of options (`cutslots.options`) with defaults, `image_size` in
   pixels, `num_slots` and `build()`, which returns the module. The module keeps it as `config`.
2. Write `forward(images)` for `(batch, 3, H, W)` in [-1, 1]. It returns `Outputs`, a frozen
   dataclass of tensors whose first axis is the batch:
    - `reconstruction`, `(batch, 3, H, W)` in [-1, 1];
    - `reconstructions`, `(batch, slots, 3, H, W)`: an image per slot;
    - `alpha`, `(batch, slots, H, W)`, summing to 1 over slots: the masks that are scored;
    - `masks`, optional, `(batch, slots, h, w)`, h divides H: cut masks, scored as `cut_*`;
    - `attention`, optional, `(batch, slots, h, w)`: another grouping, shown in figures;
    - `slots`, optional, `(batch, slots, size)`: their inner products link slots between the frames
      of a clip; without them each slot keeps its index;
    - any other tensors, for debugging.
3. Write `loss(outputs, images)`, the scalar to minimise: a mean over the batch. Make it a static
   method unless it keeps a state, which belongs in buffers so that checkpoints save it.
4. Draw random numbers with `nn.noise.drawn`: fresh in training mode, in evaluation mode the same
   for every image, so that scores and predictions are reproducible.
5. For training on several processes, use `nn.batch_shard` for all else that depends on the batch:
   its `BatchNorm2d`, and `current_shard().mean` for means. The loss is that of the local shard.
6. A video model declares `frames = 2` in its `Config`, and a `distance` between the frames of a
   training pair. It takes `(batch, 2, 3, H, W)`, and all outputs have that second axis; a slot of
   `alpha` is one object in both frames. It also returns `assignment`, `(batch, slots, slots)`: the
   slots of the first frame to those of the second.
7. Add a preset to `train/config.py`; one with images of 32 pixels or less is tested in full by
   tests/models/test_interface.py.

Training, evaluation, figures, checkpoints and export use nothing else of a model.
"""

import importlib
import pkgutil
from types import ModuleType

from cutslots.errors import InputError, nearest


def names() -> list[str]:
    """The names of all models."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load(name: str) -> ModuleType:
    """The module of a model by name.

    Raises:
        InputError: no such model.
    """
    if name not in names():
        raise InputError(f"unknown model {name!r}. {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
