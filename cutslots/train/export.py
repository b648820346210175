"""A trained model as `config.json` and `weights.safetensors`, which hold no code; prediction."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.files import atomic, write_text
from cutslots.train import checkpoint
from cutslots.train.config import RunConfig, from_json, to_json
from cutslots.train.inputs import image_size, is_video, label_maps, reduction, to_model
from cutslots.train.video import first_frames, with_identities

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
ABOUT = "cutslots"  # key in the header of the weights file


def save_model(
    state: Mapping[str, Tensor],
    config: RunConfig,
    folder: Path,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write a model's `state_dict()` and configuration into `folder`, and `about`, JSON values that
    describe the model, into the header of the weights file."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt", ABOUT: json.dumps(dict(about or {}))})
        temporary.chmod(0o644)  # safetensors makes it readable for its owner only
    write_text(folder / CONFIG, to_json(config))


def described(folder: Path) -> dict[str, Any]:
    """The `about` of `save_model` for an exported model; empty if there is none."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"the exported model in {folder} cannot be read: {error}") from None
    return about if isinstance(about, dict) else {}


def load_model(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """The trained model of an exported folder, a run's folder (its best checkpoint) or a checkpoint
    file, in evaluation mode.

    InputError if `path` holds no model, or weights that do not fit their configuration.
    """
    config, state = load_weights(Path(path), device)
    model = config.model.build().to(device)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit their configuration: {error}") from None
    return model.eval()


def load_weights(path: Path, device: Any = "cpu") -> tuple[RunConfig, dict[str, Any]]:
    """Configuration and weights of the model at `path`; see `load_model`."""
    if not (path / WEIGHTS).is_file():
        state = checkpoint.load(find_checkpoint(path), device)
        return from_json(state["config"]), state["model"]
    try:
        weights = load_file(path / WEIGHTS, device=str(device))
        return from_json((path / CONFIG).read_text()), weights
    except (OSError, SafetensorError) as error:
        raise InputError(f"the exported model in {path} cannot be read: {error}") from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at `path`: the file itself, or the best (else newest) of a run's folder."""
    folder = path / checkpoint.CHECKPOINTS
    for candidate in (path, folder / checkpoint.BEST, *reversed(checkpoint.steps(folder))):
        if candidate.is_file():
            return candidate
    raise InputError(f"no checkpoint, run with checkpoints or exported model at {path}.")


def weights_digest(model: nn.Module) -> str:
    """Twelve hexadecimal digits of a hash of the model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Segment images one by one; for a video model they are the frames of one clip.

    Args:
        images: `(N, H, W, 3)` uint8 RGB, square, of the model's size or a whole multiple; N >= 0.
        batch_size: images (video model: pairs of frames) at a time.

    Returns:
        `masks`, `(N, size, size)` uint8 label maps by alpha, 0 for slot 0 (the background in models
        that have one; video: identities over the clip); `cut_masks`, the same by the cuts of models
        that have them; `reconstructions`, `(N, size, size, 3)` uint8.

    InputError if shape, type or `batch_size` are wrong, or a video model has diverged.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}.")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}.")
    device, size, count = next(model.parameters()).device, image_size(model), len(images)
    reduction((images.shape[1], images.shape[2]), size)
    if not count:
        blank = predict(model, np.zeros((1, *images.shape[1:]), np.uint8))
        return {name: value[:0] for name, value in blank.items()}
    parts, similarities = [], []
    for start in range(0, count, batch_size):
        index = np.arange(start, min(start + batch_size, count))
        if is_video(model):
            pairs = images[np.stack([index, np.minimum(index + 1, count - 1)], axis=1)]
            inputs = to_model(torch.from_numpy(pairs), size, device)
            outputs, similarity = first_frames(model, inputs)
            similarities.append(similarity)
        else:
            outputs = model(to_model(torch.from_numpy(images[index]), size, device))
        parts.append({name: value.cpu() for name, value in to_bytes(outputs, size).items()})
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    if similarities:
        maps = {name: labels for name, labels in joined.items() if name != "reconstructions"}
        joined |= with_identities(maps, torch.cat(similarities)[:-1])
    return {name: value.to(torch.uint8).numpy() for name, value in joined.items()}


def to_bytes(outputs: Any, size: int) -> dict[str, Tensor]:
    """A model's outputs as uint8: its `label_maps` and `reconstructions`."""
    values = ((outputs.reconstruction.float() + 1) * 127.5).round().clamp(0, 255)
    maps = {**label_maps(outputs, size), "reconstructions": values.permute(0, 2, 3, 1)}
    return {name: value.to(torch.uint8) for name, value in maps.items()}
