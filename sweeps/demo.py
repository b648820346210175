"""Does the small model learn objects on this machine? Built-in scenes, beside Slot Attention.

    python sweeps/demo.py              # 6 trials, as many at a time as there are cores
    python sweeps/demo.py --dry-run    # the space, the trials, the resources, finished trials
    cutslots ui                        # MLflow: curves, masks, models; experiment "scenes"

Searched: the smoothing of the cut (gamma_edge), how sharply masks are combined, and the learning
rate. The small model and Slot Attention, with the same encoder and decoder, run first and are not
stopped early.

Cost: about four minutes on 2 cores.
Expected: the best trial has an mIoU above 0.8 and an ARI above 0.8 on 200 validation scenes, Slot
Attention about 0.3 and 0.1 with a higher ARI-FG: it shares the ground among its slots, which ARI-FG
does not see (results/LOG.md).
"""

from cutslots.sweep import ASHA, Baseline, Sweep, loguniform, main

STEPS = ("train.steps=2500", "train.eval_every=250")

SWEEP = Sweep(
    name="demo",
    dataset="scenes",
    preset="small",
    overrides=STEPS,
    space={
        "cut.gamma_edge": loguniform(0.1, 2.0),
        "temperature.combined": loguniform(0.05, 0.3),
        "optim.learning_rate": loguniform(1e-3, 6e-3),
    },
    baselines={"small": Baseline(), "slot-attention": Baseline("slot-attention-small", STEPS)},
    seeds=(1,),
    objective="miou",
    trials=4,
    halving=ASHA(grace_period=0.125, reduction_factor=2),
)

if __name__ == "__main__":
    main(SWEEP)
