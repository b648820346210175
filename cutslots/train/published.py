"""The model published with the paper: its checkpoints as weights of `published-clevrtex`.

Source: https://github.com/alpz/graph-ocl, `SlotCutModel` at commit d5d533c.
"""

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cutslots.errors import InputError, listed
from cutslots.models.min_cut_slots import MinCutSlots
from cutslots.train import checkpoint
from cutslots.train.config import preset

PRESET = "published-clevrtex"
# Published module -> ours. `before` holds the first layers of the three heads, one below the other.
MODULES = {
    "encoder.conv1": "encoder.0",
    "encoder.bn1": "encoder.1",
    "encoder.layer1.0.shortcut.0": "encoder.3.shortcut.0",
    "encoder.layer1.0.shortcut.1": "encoder.3.shortcut.1",
    **{
        f"encoder.layer{block}.0.{theirs}{layer}": f"encoder.{block + 2}.{ours}{layer}"
        for block in range(1, 5)
        for theirs, ours in (("conv", "conv"), ("bn", "norm"))
        for layer in (1, 2)
    },
    "slot_cut.in_pos_embedding.dense": "position.project",
    "slot_cut.weights_net.0": "object_weights.layers.0",
    "slot_cut.weights_net.2": "object_weights.last",
    "slot_cut.weights_net_fg.0": "foreground_weights.layers.0",
    "slot_cut.weights_net_fg.2": "foreground_weights.last",
    "slot_cut.norm_inputs": "slot_heads.norm",
    **{f"slot_cut.k_net2{end}.0": "slot_heads.before" for end in ("", "_2", "_3")},
    **{
        f"slot_cut.k_net2{end}.2": f"slot_heads.project.{i}"
        for i, end in enumerate(("", "_2", "_3"))
    },
    **{
        f"slot_cut.mlp{end}.{layer}": f"slot_heads.after.{i}.{layer}"
        for i, end in enumerate(("", "2", "3"))
        for layer in (0, 2)
    },
    "decoder_pos_embedding.dense": "decoder.position.project",
    **{f"decoder.{i}.0": f"decoder.layers.{2 * i}" for i in range(4)},
    **{f"decoder.4.{i}": f"decoder.layers.{8 + i}" for i in (0, 2, 4)},
}
# Ours: right, left, down, up, s, t. Published: s, t, down, right, up, left.
CHANNELS = [3, 5, 2, 4, 0, 1]
UNUSED = ("pos_embedding.grid", "num_batches_tracked")


def load_published(
    state_dict: Mapping[str, Any], dtype: torch.dtype = torch.float32
) -> MinCutSlots:
    """The published model with the weights of a published `state_dict`, in evaluation mode.

    Args:
        state_dict: tensors by their published names, all with the same prefix, such as `model.`.

    Raises:
        InputError: tensors are missing, unknown or have another shape.
    """
    model = preset(PRESET).model.build().to(dtype).eval()
    ours = published_tensors(model)
    prefixes = Counter(
        name.removesuffix(ending) for name in state_dict for ending in ours if name.endswith(ending)
    )
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    theirs = {
        name.removeprefix(prefix): tensor
        for name, tensor in state_dict.items()
        if not name.endswith(UNUSED)
    }
    shapes = {name: tuple(_converted(name, tensor).shape) for name, tensor in ours.items()}
    problems = {
        "missing": [name for name in ours if name not in theirs],
        "unknown": [name for name in theirs if name not in ours],
        "of another shape": [
            f"{name} {tuple(theirs[name].shape)}, expected {shape}"
            for name, shape in shapes.items()
            if name in theirs and theirs[name].shape != shape
        ],
    }
    if any(problems.values()):
        texts = [f"{kind}: {listed(names, 8)}" for kind, names in problems.items() if names]
        raise InputError(
            f"these are not the weights of the published ClevrTex model. Tensors {'; '.join(texts)}"
            ". Give the state_dict of its SlotCutModel with 12 slots at 128 x 128."
        )
    with torch.no_grad():
        for name, tensor in ours.items():
            tensor.copy_(_converted(name, theirs[name]))
    return model


def published_tensors(model: MinCutSlots) -> dict[str, Tensor]:
    """Parameters and running statistics of our model by their published names, as views."""
    tensors: dict[str, Tensor] = {}
    heads = [name for name, ours in MODULES.items() if ours == "slot_heads.before"]
    for name, ours in MODULES.items():
        for kind, tensor in model.get_submodule(ours).state_dict().items():
            part = tensor.chunk(len(heads))[heads.index(name)] if name in heads else tensor
            tensors[f"{name}.{kind}"] = part
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(UNUSED)}


def _converted(name: str, tensor: Tensor) -> Tensor:
    """A published tensor in our layout; a tensor of ours gets the published shape."""
    if name.endswith("pos_embedding.dense.weight"):  # of (y, x, 1 - y, 1 - x)
        return tensor[:, [1, 0, 3, 2]]
    if name.startswith(("slot_cut.weights_net.2", "slot_cut.weights_net_fg.2")):
        return tensor.unflatten(0, (-1, 6))[:, CHANNELS].flatten(0, 1)
    if name.startswith("decoder.4") and name.endswith("weight"):  # transposed, of stride 1
        return tensor.transpose(0, 1).flip(2, 3)
    return tensor


def read_published(path: Path) -> tuple[Mapping[str, Any], int]:
    """The `state_dict` of a torch or Lightning file and its training step, 0 if it has none.

    Raises:
        InputError: the file cannot be read, or not without executing code.
    """
    try:
        content = checkpoint.read(path)
    except InputError as error:
        cause = error.__cause__
        if not isinstance(cause, pickle.UnpicklingError):
            raise
        reason = str(cause).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise InputError(
            f"{path} has more than tensors, and reading that may execute code: {reason or cause} "
            "If you trust the file, keep its weights only, where the published code is installed: "
            f"python -c \"import torch; file = torch.load('{path}', 'cpu', weights_only=False); "
            "torch.save(file['state_dict'], 'weights.pt')\". Then import weights.pt."
        ) from None
    content = content if isinstance(content, Mapping) else {}
    step = content.get("global_step", 0)
    state_dict = content.get("state_dict", content)
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}
    return tensors, step if isinstance(step, int) else 0
