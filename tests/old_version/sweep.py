"""The sweep of write.sh in the names of today: its definition must be that of the stored study."""

from cutslots.sweep import Baseline, Sweep, choice, loguniform, main, randint, uniform

STEPS = (
    "train.steps=20",
    "train.log_every=5",
    "train.eval_every=5",
    "train.eval_images=8",
    "train.checkpoint_every=10",
)
SIZES = (
    "image_size=16",
    "encoder.channels=4",
    "encoder.kernel=3",
    "decoder.channels=4",
    "decoder.kernel=3",
    "optim.batch_size=8",
)
ATTENTION = ("attention.size=4", "attention.hidden=8")
SWEEP = Sweep(
    name="old",
    dataset="scenes",
    preset="small",
    overrides=(*SIZES, "weights.hidden=4", "slots.hidden=8", *STEPS),
    space={
        "optim.learning_rate": loguniform(1e-3, 6e-3),
        "temperature.combined": uniform(0.05, 0.3),
        "slots.size": randint(4, 6),
        "init": choice("he", "torch"),
    },
    baselines={
        "small": Baseline(None, ("slots.size=4",)),
        "slot-attention": Baseline("slot-attention-small", (*SIZES, *ATTENTION, *STEPS)),
    },
    trials=2,
    dataset_options={"count": 30, "size": 16},
)

if __name__ == "__main__":
    main(SWEEP)
