"""What a model takes: a device, images of its size, data of its kind."""

import torch
from torch import Tensor, nn

from cutslots.data.batches import Batches
from cutslots.errors import InputError


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device of a name such as "cpu", "cuda" or "cuda:1"; None: the current GPU, else the CPU.

    Raises:
        InputError: no such device, or none on this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device {str(name)!r} is unknown. Use cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"device is {str(name)!r}, but this machine has no usable CUDA device. Use cpu."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {str(name)!r}, but the last CUDA device is cuda:{torch.cuda.device_count() - 1}."
        )
    return device


def to_model(images: Tensor, size: int, device: torch.device) -> Tensor:
    """Stored images as the model takes them: uint8 `(batch, H, W, 3)` -> float `(batch, 3, size, size)` in [-1, 1], on `device`.

    Pairs of frames and clips have one more axis after the batch. Images travel as uint8 and stay in channels-last memory order;
    larger ones are box-averaged down by a whole factor.
    """
    axes = images.shape[:-3]
    images = images.to(device, non_blocking=True).flatten(0, -4).permute(0, 3, 1, 2).float()
    factor = reduction((images.shape[-2], images.shape[-1]), size)
    if factor > 1:
        images = nn.functional.avg_pool2d(images, factor)
    return images.mul_(1 / 127.5).sub_(1).unflatten(0, axes)


def masks_to_model(masks: Tensor, size: int, device: torch.device) -> Tensor:
    """Stored instance ids at the model's size: the pixel nearest to each block's centre."""
    factor = reduction((masks.shape[-2], masks.shape[-1]), size)
    return masks[:, factor // 2 :: factor, factor // 2 :: factor].to(device)


def reduction(stored: tuple[int, int], size: int) -> int:
    """The whole factor between stored (height, width) and model size.

    Raises:
        InputError: there is none.
    """
    height, width = stored
    if height != width or height % size:
        raise InputError(
            f"the images are {height} x {width} and the model takes {size} x {size}, which is no whole fraction. "
            f"Prepare the data with --size {size}, or set model.image_size."
        )
    return height // size


def image_size(model: nn.Module) -> int:
    """The side of the images that a model takes, in pixels."""
    return int(model.config.image_size)  # type: ignore[union-attr, arg-type]


def is_video(model: nn.Module) -> bool:
    """Whether a model takes pairs of frames in place of images."""
    return getattr(model.config, "frames", 1) > 1


def check_data(model: nn.Module, batches: Batches) -> None:
    """Refuse data that the model cannot be scored on.

    Raises:
        InputError: the stored images are no whole multiple of the model's size, or the model takes pairs of frames and they are of
            no clip.
    """
    reduction(batches.image_size, image_size(model))
    if is_video(model) and batches.num_frames is None:
        raise InputError(
            "the model takes pairs of frames, but the data are single images. Use data with clips, such as movi_a."
        )
