"""A sound trial, for comparison, and two that fail; for one and for several workers."""

from dataclasses import replace

from faults import SWEEP as FAULTS
from tiny import SWEEP as TINY

from cutslots.sweep import main

SWEEP = replace(
    TINY,
    name="workers",
    overrides=(*TINY.overrides, "train.steps=300", "train.eval_every=60"),
    baselines={name: FAULTS.baselines[name] for name in ("sound", "diverges", "too-large")},
    trials=0,
)

if __name__ == "__main__":
    main(SWEEP)
