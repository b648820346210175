"""Models: one file each, its name is the model's name. Training, evaluation, figures, checkpoints and export read no more of it
than this:

- `Config`, a frozen dataclass of options (`cutslots.options`) with defaults, an `image_size` in pixels, `num_slots`, and `build()`,
  which returns the module. The module keeps it as `config`.
- `forward(images)` takes `(batch, 3, H, W)` in [-1, 1] and returns `Outputs`, a frozen dataclass of tensors whose first axis is
  the batch:
    - `reconstruction`, `(batch, 3, H, W)` in [-1, 1];
    - `reconstructions`, `(batch, slots, 3, H, W)`: a picture a slot;
    - `alpha`, `(batch, slots, H, W)`, summing to 1 over slots: the masks that are scored;
    - `masks`, only in models that cut, `(batch, slots, h, w)` where h divides H: scored beside alpha as `cut_*`;
    - `attention`, only in models that group otherwise, `(batch, slots, h, w)`: shown in figures;
    - `slots`, `(batch, slots, size)`: by their inner products slots are followed over the frames of a clip; without them each keeps
      its number;
    - and whatever else is worth a look in a debugger.
- A model of video says so by `frames = 2` in its `Config`, and a `distance` between the frames of a training pair. It takes
  `(batch, 2, 3, H, W)`, all of the above has that second axis too, with a slot meaning the same in both frames of `alpha`, and
  `assignment`, `(batch, slots, slots)`, says which slot of the first frame is which of the second.
- `loss(outputs, images)` is the number that training minimises. It is a static method unless it keeps something from step to step,
  which then lies in the module's buffers, so that a resumed run has it. It is a mean over the batch.

Several processes may share a batch (`cutslots.nn.shares`); then the loss is that of one's share, and what else depends on the batch
is made that of all of it: random numbers by `noise.drawn`, batch normalisation by `cutslots.nn.batch_norm`, means by `Share.mean`.

Random numbers come from torch's global generator while the module is in training mode: `fit` seeds it and its checkpoints keep its
state. In evaluation mode a model draws nothing that depends on the batch or on what was drawn before (`cutslots.nn.noise`), so that
scores and predictions are the same every time. `tests/models/test_interface.py` asks this of every small preset for images, and
`tests/models/test_min_cut_video.py` of the one for video.
"""

import importlib
import pkgutil
from types import ModuleType

from cutslots.errors import InputError, nearest


def names() -> list[str]:
    """The models there are."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def load(name: str) -> ModuleType:
    """The module of a model by name.

    Raises:
        InputError: no such model.
    """
    if name not in names():
        raise InputError(f"model {name!r} is unknown. {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}")
