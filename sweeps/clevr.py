"""Which gammas, temperatures and slot count does CLEVR ask for? The paper fixes gamma = 0.5 and 12 slots and names no temperature.

    cutslots prepare clevr RAW                     # once; or CUTSLOTS_DATA names where it lies
    python sweeps/clevr.py --dry-run               # the space, the trials, the resources, what is finished
    python sweeps/clevr.py                         # this machine's GPUs, one a trial
    ray submit cluster/gpu.yaml sweeps/clevr.py    # a cluster
    python sweeps/clevr.py --smoke                 # does all of it run? minutes on a laptop

The paper's setting and Slot Attention run first, with three seeds each; then 40 settings by TPE, which ASHA ends early; then the
best one with the other two seeds. gamma sets all regularisation, gamma_edge apart from it the reach of the smoothing.

Cost: one training of 312,500 steps is the unit; ASHA spends about 12 of them on the search, and the rest is 8, three of them of
500,000 steps.
Expected: the paper reports ARI-FG 95.4 and mIoU 49.0 (Table 1); nobody has run this sweep whole yet.
"""

from cutslots.sweep import Halving, Setting, Sweep, integers, log_uniform, main

SWEEP = Sweep(
    name="clevr",
    dataset="clevr",
    preset="paper-clevr",
    space={
        "cut.gamma": log_uniform(0.05, 5.0),
        "cut.gamma_edge": log_uniform(0.05, 20.0),
        "temperature.object": log_uniform(0.1, 2.0),
        "temperature.combined": log_uniform(0.03, 0.3),
        "num_slots": integers(9, 14),
        "optim.learning_rate": log_uniform(1e-4, 1e-3),
    },
    first={"paper": Setting(), "slot-attention": Setting("slot-attention-clevr")},
    seeds=(0, 1, 2),
    trials=40,
    halving=Halving(first=0.08, factor=3),
    evaluate=("clevr",),
)

if __name__ == "__main__":
    main(SWEEP)
