"""What a model takes and gives: its device, its images and masks, its label maps."""

import contextlib
import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from cutslots.data.batches import Batches
from cutslots.errors import InputError


def pick_device(name: str | torch.device | None) -> torch.device:
    """The device called "cpu", "cuda" or "cuda:1" (InputError if this machine does not have it);
    None: the current GPU, else the CPU."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if count else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda or cuda:N, got {str(name)!r}.")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(f"device {str(name)!r} does not exist: this machine has {count} GPUs.")
    return device


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed blocks of up to 1 GB for the rest of the process.

    By default it returns large blocks to the system and gets them back page by page in the next
    step: a tenth of the time of a CPU step of `small`. Numbers do not change.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for size in (2**25, 2**30):  # glibc before 2.35 refuses more than 32 MB
            mallopt(-3, size)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def to_model(images: Tensor, size: int, device: torch.device) -> Tensor:
    """Stored images, uint8 `(batch, ..., H, W, 3)`, as floats `(batch, ..., 3, size, size)` in
    [-1, 1] on `device`; larger images are box-averaged by a whole factor.

    Images travel as uint8 and stay in channels-last memory order.
    """
    axes = images.shape[:-3]
    images = images.to(device, non_blocking=True).flatten(0, -4).permute(0, 3, 1, 2).float()
    factor = reduction((images.shape[-2], images.shape[-1]), size)
    if factor > 1:
        images = nn.functional.avg_pool2d(images, factor)
    return images.mul_(1 / 127.5).sub_(1).unflatten(0, axes)


def masks_to_model(masks: Tensor, size: int, device: torch.device) -> Tensor:
    """Stored instance ids at the model's size: the pixel nearest to each block's center."""
    factor = reduction((masks.shape[-2], masks.shape[-1]), size)
    return masks[:, factor // 2 :: factor, factor // 2 :: factor].to(device)


def reduction(stored: tuple[int, int], size: int) -> int:
    """The whole factor between stored (height, width) and model size; InputError if none is."""
    height, width = stored
    if height != width or height % size:
        raise InputError(
            f"the images must be square and a whole multiple of the model's {size} x {size}, got "
            f"{height} x {width}. Prepare the data with --size {size}, or set model.image_size."
        )
    return height // size


def label_maps(outputs: Any, size: int) -> dict[str, Tensor]:
    """Slot of every pixel, `(batch, size, size)`: `masks` by alpha (ties to the lowest slot), and
    `cut_masks` by the cuts of a model that has them, enlarged by repetition."""
    maps = {"masks": outputs.alpha.argmax(1)}
    if hasattr(outputs, "masks"):
        cut = outputs.masks.argmax(1)
        factor = size // cut.shape[-1]
        maps["cut_masks"] = cut.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return maps


def image_size(model: nn.Module) -> int:
    """Side of the model's images in pixels."""
    return int(model.config.image_size)  # type: ignore[union-attr, arg-type]


def is_video(model: nn.Module) -> bool:
    """Whether the model takes pairs of frames instead of images."""
    return getattr(model.config, "frames", 1) > 1


def check_data(model: nn.Module, batches: Batches) -> None:
    """Raise InputError unless the model can be scored on the data."""
    reduction(batches.image_size, image_size(model))
    if is_video(model) and batches.num_frames is None:
        raise InputError("the model takes pairs of frames, got single images. Use clips.")
