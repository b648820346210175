"""Does it learn objects here, on this machine, in minutes? The small model on built-in scenes, beside Slot Attention.

    python sweeps/demo.py                 # 6 trials, two at a time on two cores; --dry-run says what would be done
    cutslots ui                           # MLflow: curves, masks, models; experiment "scenes"

Searched: the reach of the cut's smoothing (through gamma_edge), how sharply masks are combined, and the learning rate.
`small` and Slot Attention between the same encoder and decoder run first and are not ended early.

Cost: about six minutes on 2 cores. Expected: the best trial's ARI-FG on 200 validation scenes is above 0.9; an untrained model lies
near 0, and most trials far below the best: what is found depends on the seed (results/LOG.md).
"""

from cutslots.sweep import Halving, Setting, Sweep, log_uniform, main

STEPS = ("train.steps=2000", "train.eval_every=250")

SWEEP = Sweep(
    name="demo",
    dataset="scenes",
    preset="small",
    set=STEPS,
    space={
        "cut.gamma_edge": log_uniform(0.1, 2.0),
        "temperature.combined": log_uniform(0.05, 0.3),
        "optim.learning_rate": log_uniform(1e-3, 6e-3),
    },
    first={"small": Setting(), "slot-attention": Setting("slot-attention-small", STEPS)},
    seeds=(1,),
    trials=4,
    halving=Halving(first=0.125, factor=2),
)

if __name__ == "__main__":
    main(SWEEP)
