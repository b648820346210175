"""Which gammas, temperatures and slot count suit CLEVR? The paper fixes gamma = 0.5 and 12 slots.

    cutslots prepare clevr RAW                     # once; or set CUTSLOTS_DATA to its parent folder
    python sweeps/clevr.py --dry-run               # the space, the trials, the resources
    python sweeps/clevr.py                         # this machine's GPUs, one per trial
    ray submit cluster/gpu.yaml sweeps/clevr.py    # a cluster
    python sweeps/clevr.py --smoke                 # tests everything in minutes on a laptop

The paper's configuration and Slot Attention run first with three seeds each, then 40 trials by TPE,
which ASHA stops early, then the best one with the other two seeds. The paper names no temperature.
Potentials depend on weights / gamma, so gamma times a temperature is one knob: gamma and the ratio
of the temperatures are sampled (temperature.object stays 0.5), and the cut's reach in pixels apart.

Cost: a training of 312,500 steps is the unit. The search takes about 12 units thanks to ASHA, the
rest 8, of which three have 500,000 steps.
Expected: the paper reports ARI-FG 95.4 and mIoU 49.0 (Table 1). This sweep has not been run yet.
"""

from cutslots.sweep import ASHA, Baseline, Sweep, loguniform, main, randint

SWEEP = Sweep(
    name="clevr",
    dataset="clevr",
    preset="paper-clevr",
    space={
        "cut.gamma": loguniform(0.05, 5.0),
        "cut.reach": loguniform(0.3, 8.0),
        "temperature.foreground": loguniform(0.1, 5.0),
        "temperature.combined": loguniform(0.03, 0.3),
        "num_slots": randint(9, 14),
        "optim.learning_rate": loguniform(1e-4, 1e-3),
    },
    baselines={"paper": Baseline(), "slot-attention": Baseline("slot-attention-clevr")},
    seeds=(0, 1, 2),
    objective="miou",
    trials=40,
    halving=ASHA(grace_period=0.08, reduction_factor=3),
    test_datasets=("clevr",),
)

if __name__ == "__main__":
    main(SWEEP)
