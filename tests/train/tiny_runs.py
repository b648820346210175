"""Settings of a model and a run that take a step in a few milliseconds."""

TINY = (
    "encoder.channels=8",
    "weights.hidden=8",
    "slots.size=8",
    "slots.hidden=16",
    "decoder.channels=8",
    "optim.batch_size=8",
    "train.steps=12",
    "train.seed=0",
    "train.log_every=3",
    "train.eval_every=6",
    "train.eval_images=8",
    "train.checkpoint_every=2",
)
