"""A trained model as one torch.export file: a graph of torch operations that needs no cutslots."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cutslots.errors import InputError
from cutslots.files import atomic
from cutslots.train.export import to_bytes
from cutslots.train.inputs import image_size, is_video, to_model


class Program(nn.Module):
    """Maps uint8 images `(batch, size, size, 3)` to the outputs of `predict`, and `alpha`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        size = image_size(self.model)
        outputs = self.model(to_model(images, size, images.device))
        return {**to_bytes(outputs, size), "alpha": outputs.alpha}


@torch.no_grad()
def save_program(model: nn.Module, path: Path) -> bool:
    """Export a model in evaluation mode for its device, and compare the file with the model.

    Returns:
        Whether a call takes any number of images; otherwise it takes one.

    Raises:
        InputError: torch cannot trace the model, or the program differs from it; no file is left.
    """
    if is_video(model):
        raise InputError("a video model cannot be exported with --torch: slots are tracked outside")
    size, device = image_size(model), next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    # The first two are traced. A program that holds their results as constants fails on the others.
    images = [
        torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
        for count in (2, 1, 1, 3, 2)
    ]
    several, one, *tests = (batch.to(device) for batch in images)
    program = Program(copy.deepcopy(model)).eval()
    # Before tracing: this also fills the tables that parts of the model make at their first use.
    expected = [program(batch) for batch in tests]
    with warnings.catch_warnings(), atomic(path) as temporary:
        warnings.simplefilter("ignore")  # torch's remarks on its internals
        try:
            batch_axis = {"images": {0: torch.export.Dim("batch", min=1)}}
            exported = torch.export.export(program, (several,), dynamic_shapes=batch_axis)
            any_number = True
        except Exception:  # torch's tracer raises many types
            try:
                exported, any_number = torch.export.export(program, (one,)), False
            except Exception as error:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                raise InputError(
                    f"torch.export cannot trace this model: {reason} (cuts need cut.solver=dct)"
                ) from error
        # After tracing: weights without gradient are traced in ways that fix the batch.
        program.requires_grad_(False)
        with open(temporary, "wb") as file:
            torch.export.save(exported, file)
        loaded = load_program(temporary)
        for batch, outputs in zip(tests, expected, strict=True):
            if any_number or len(batch) == 1:
                _compare(loaded(batch), outputs)
    return any_number


def _compare(outputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        # Rounding decides near a tie: the same label for 99.9% of the pixels is enough.
        tolerance = {"alpha": 1e-4, "reconstructions": 1.0}.get(name, 0.0)
        close = (outputs[name].double() - value.double()).abs() <= tolerance
        if close.double().mean() < (1.0 if name == "alpha" else 0.999):
            raise InputError(f"the exported program gives other {name} than the model.")


def load_program(path: Path | str) -> Callable[[Tensor], dict[str, Tensor]]:
    """The program in a file of `save_program`; see `Program` for its input and outputs."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(file).module()
