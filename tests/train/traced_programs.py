"""Writes programs of models to a folder, runs them on batches of several sizes, and prints how well they do what the models do."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from tiny_runs import TINY

from cutslots import options
from cutslots.train import predict
from cutslots.train.config import preset
from cutslots.train.program import load_program, save_program

MODELS = {
    "small": ("small", TINY),
    "vertex": ("small", (*TINY, "cut.solver=vertex")),
    "resnet": ("small", ("encoder.kind=resnet", "encoder.channels=8", "slots.size=8")),
    "slot attention": ("slot-attention-small", ("encoder.channels=8", "attention.size=8")),
    "genesis": ("genesis-v2-small", ("model.size=8",)),
}
IMAGES = np.random.default_rng(5).integers(0, 256, (7, 32, 32, 3), np.uint8)


def traced(name: str, assignments: tuple[str, ...], path: Path) -> dict:
    config = preset(name)
    for assignment in assignments:
        config = options.override(config, assignment)
    torch.manual_seed(0)
    model = config.model.build().eval()
    any_number = save_program(model, path)
    program = load_program(path)
    same, found = [], {}
    for count in (1, 7, 2):
        expected, found = predict(model, IMAGES[:count]), program(torch.from_numpy(IMAGES[:count]))
        for key, value in expected.items():
            close = np.abs(found[key].numpy().astype(int) - value) <= (key == "reconstructions")
            same.append(float(close.mean()))
    sums = found["alpha"].sum(1)
    return {
        "any_number": any_number,
        "names": sorted(found),
        "same": same,
        "sums": [float(sums.min()), float(sums.max())],
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(
        json.dumps(
            {
                name: traced(base, changes, folder / f"{name}.pt2")
                for name, (base, changes) in MODELS.items()
            }
        )
    )
