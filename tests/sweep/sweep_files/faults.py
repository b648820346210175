"""A sweep with one sound trial and several that fail for different reasons."""

from dataclasses import replace

from tiny import SWEEP as TINY

from cutslots.sweep import Baseline, main

SWEEP = replace(
    TINY,
    name="faults",
    baselines={
        "sound": Baseline(),
        "diverges": Baseline(overrides=("optim.learning_rate=1e30", "optim.clip_norm=none")),
        "too-large": Baseline(
            overrides=("slots.hidden=100000000000000",)
        ),  # more bytes than a process can address
        "refused": Baseline(overrides=("optim.batch_size=64",)),  # of 48 images
        "killed": Baseline(overrides=("optim.decay=0.7",)),  # by the test, as soon as it starts
    },
    trials=0,
)

if __name__ == "__main__":
    main(SWEEP)
