"""A sweep whose trials take a few seconds each: does it survive what happens to it?

python tests/sweep/sweep_files/tiny.py --data FOLDER --trials 0     # one trial
"""

from cutslots.sweep import Baseline, Sweep, loguniform, main

SWEEP = Sweep(
    name="tiny",
    dataset="scenes-tiny",
    preset="small",
    overrides=(
        "image_size=16",
        "encoder.channels=4",
        "weights.hidden=4",
        "slots.size=4",
        "slots.hidden=8",
        "decoder.channels=4",
        "optim.batch_size=8",
        "train.steps=200",
        "train.log_every=5",
        "train.eval_every=100",
        "train.eval_images=4",
        "train.checkpoint_every=20",
    ),
    space={"optim.learning_rate": loguniform(1e-3, 6e-3)},
    baselines={"small": Baseline()},
    trials=2,
    halving=None,
)

if __name__ == "__main__":
    main(SWEEP)
