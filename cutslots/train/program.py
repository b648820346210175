"""A trained model as one file of `torch.export`: a graph of torch's own operations, which runs without cutslots."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.files import atomic
from cutslots.train.export import readings
from cutslots.train.inputs import image_size, is_video, to_model

BATCHES = (1, 3, 2)  # on which a program is compared
CLOSE = 1e-4  # of opacities
SAME = 0.999  # share of pixels whose label must be the same: near a tie rounding decides


class Program(nn.Module):
    """Images in, uint8 `(batch, size, size, 3)`; out what `predict` gives for images of the model's size, and `alpha`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        size = image_size(self.model)
        outputs = self.model(to_model(images, size, images.device))
        return {**readings(outputs, size), "alpha": outputs.alpha}


@torch.no_grad()
def save_program(model: nn.Module, path: Path) -> bool:
    """Write a model in evaluation mode as a program for the device that it is on, read it back, and compare it on random images.

    Returns:
        Whether a call may have any number of images; else it has to have one.

    Raises:
        InputError: torch cannot trace the model, or the program does not do what the model does; nothing is written then.
    """
    if is_video(model):
        raise InputError(
            "a model of video follows its slots through a clip by an assignment, which torch.export cannot trace"
        )
    program = Program(copy.deepcopy(model)).eval()
    # Tables that parts of the model make when they are first used must be real before they are traced.
    truth = [program(_images(model, batch)) for batch in BATCHES]
    exported, any_number = _traced(program)
    program.requires_grad_(
        False
    )  # after it: weights that take no gradient are traced in ways that fix the batch
    with atomic(path) as temporary:
        with open(temporary, "wb") as file, _quiet():
            torch.export.save(exported, file)
        loaded = load_program(temporary)
        for size, expected in zip(BATCHES, truth, strict=True):
            if any_number or size == 1:
                _compare(loaded(_images(model, size)), expected)
    return any_number


def load_program(path: Path | str) -> Callable[[Tensor], dict[str, Tensor]]:
    """The program in a file that `save_program` wrote; see `Program` for what it takes and gives."""
    with open(path, "rb") as file, _quiet():
        return torch.export.load(file).module()


def _images(model: nn.Module, batch: int, seed: int = 0) -> Tensor:
    size, device = image_size(model), next(model.parameters()).device
    return torch.randint(
        0,
        256,
        (batch, size, size, 3),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    ).to(device)


def _traced(program: Program) -> tuple[Any, bool]:
    """The traced program, and whether it takes any number of images: where the model allows that, else one."""
    # Other images than it is compared on: a program that holds the answer for these is found out.
    several, one = (_images(program.model, batch, seed=1) for batch in (2, 1))
    try:
        return _export(program, several, {"images": {0: torch.export.Dim("batch", min=1)}}), True
    except Exception:  # torch's tracer raises many kinds
        try:
            return _export(program, one, None), False
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(
                f"torch.export cannot trace this model{_solver(program.model)}: {reason}"
            ) from error


def _export(program: Program, images: Tensor, dynamic_shapes: Any) -> Any:
    with _quiet():
        return torch.export.export(program, (images,), dynamic_shapes=dynamic_shapes)


def _solver(model: nn.Module) -> str:
    choice = getattr(getattr(model, "cut", None), "choice", None)
    return (
        f" (its cuts are solved by {choice.name!r}; 'dct' can be traced)"
        if choice and choice.name != "dct"
        else ""
    )


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        if name == "alpha":
            same = bool(torch.allclose(found[name], value, atol=CLOSE))
        else:
            close = (found[name].int() - value.int()).abs() <= (
                1 if name == "reconstructions" else 0
            )
            same = bool(close.float().mean() >= SAME)
        if not same:
            raise InputError(
                f"the program that torch.export made gives other {name} than the model, so it is not kept"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own insides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
