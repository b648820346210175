"""A trained model as two files that hold no code: `config.json` and `weights.safetensors`; and how to use it on new images."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
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
from cutslots.train.inputs import image_size, is_video, reduction, to_model
from cutslots.train.scoring import label_maps
from cutslots.train.video import first_frames, renamed

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
ABOUT = "cutslots"  # the entry in the head of the weights' file


def save_model(
    state: Mapping[str, Tensor],
    config: RunConfig,
    folder: Path,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a model's `state_dict()` and its configuration into `folder`.

    Args:
        about: what is known of the model, anything JSON can hold; kept in the head of the weights' file, see `described`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary, {"format": "pt", ABOUT: json.dumps(dict(about))})
        temporary.chmod(0o644)  # safetensors lets nobody else read it
    write_text(folder / CONFIG, to_json(config))


def described(folder: Path) -> dict[str, Any]:
    """What `save_model` was told about an exported model; empty when that was nothing."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"the exported model in {folder} cannot be read: {error}") from None
    return about if isinstance(about, dict) else {}


def load_model(path: Path | str, device: torch.device | str = "cpu") -> nn.Module:
    """The trained model in evaluation mode, from an exported folder, a run's folder (its best checkpoint) or a checkpoint file.

    Raises:
        InputError: nothing of that kind there, or weights that do not fit their configuration.
    """
    config, state = load_weights(Path(path), device)
    model = config.model.build().to(device)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights in {path} do not fit their configuration: {error}") from None
    return model.eval()


def weights_digest(model: nn.Module) -> str:
    """What makes a trained model itself: twelve hexadecimal digits of its weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:12]


def load_weights(
    path: Path, device: torch.device | str = "cpu"
) -> tuple[RunConfig, dict[str, Any]]:
    """Configuration and weights behind a path; see `load_model`."""
    if (path / WEIGHTS).is_file():
        try:
            return from_json((path / CONFIG).read_text()), load_file(
                path / WEIGHTS, device=str(device)
            )
        except (OSError, SafetensorError) as error:
            raise InputError(f"the exported model in {path} cannot be read: {error}") from None
    state = checkpoint.load(find_checkpoint(path), device)
    return from_json(state["config"]), state["model"]


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path stands for: the file itself, or the best (else the newest) of a run's folder."""
    if path.is_file():
        return path
    folder = path / "checkpoints"
    found = [folder / checkpoint.BEST, *reversed(checkpoint.steps(folder))]
    for candidate in found:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"there is neither a checkpoint, nor a run with checkpoints, nor an exported model at {path}."
    )


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Segment new pictures: each by itself, but for a model of video they are the frames of one clip, and labels are identities.

    Args:
        images: `(N, H, W, 3)` uint8 RGB, square, of the model's size or a whole multiple of it. N may be 0.
        batch_size: pictures at a time, pairs of frames for a model of video.

    Returns:
        `masks`, `(N, size, size)` uint8 label maps by alpha, 0 for slot 0 (the background in models that have one); `cut_masks`,
        the same by the cuts, of models that have them; `reconstructions`, `(N, size, size, 3)` uint8.

    Raises:
        InputError: another shape or type, a `batch_size` below 1, or a model of video that has diverged.
    """
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise InputError(f"images are {images.dtype} {images.shape}; give uint8 (N, H, W, 3).")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; give at least 1.")
    device = next(model.parameters()).device
    count, size = len(images), image_size(model)
    reduction((images.shape[1], images.shape[2]), size)
    if not count:
        return {
            name: value[:0]
            for name, value in predict(model, np.zeros((1, *images.shape[1:]), np.uint8)).items()
        }
    found: dict[str, list[Tensor]] = {}
    similarities: list[Tensor] = []
    for start in range(0, count, batch_size):
        now = np.arange(start, min(start + batch_size, count))
        if is_video(model):
            pairs = np.stack([images[now], images[np.minimum(now + 1, count - 1)]], axis=1)
            outputs, similarity = first_frames(
                model, to_model(torch.from_numpy(pairs), size, device)
            )
            similarities.append(similarity)
        else:
            outputs = model(to_model(torch.from_numpy(images[now]), size, device))
        for name, value in readings(outputs, size).items():
            found.setdefault(name, []).append(value.cpu())
    whole = {name: torch.cat(parts) for name, parts in found.items()}
    if similarities:
        maps = {name: labels for name, labels in whole.items() if name != "reconstructions"}
        whole |= renamed(maps, torch.cat(similarities)[:-1])
    return {name: value.to(torch.uint8).numpy() for name, value in whole.items()}


def readings(outputs: Any, size: int) -> dict[str, Tensor]:
    """What `predict` reads off a model's outputs, uint8: `masks`, `cut_masks` of models that cut, `reconstructions`."""
    picture = (
        ((outputs.reconstruction.float() + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    )
    found = {**label_maps(outputs, size), "reconstructions": picture}
    return {name: value.to(torch.uint8) for name, value in found.items()}
