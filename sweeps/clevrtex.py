"""Does the topology of cuts help where colour does not? ClevrTex, scored on its test split, on OOD and on camouflaged scenes.

    cutslots prepare clevrtex RAW                  # once; --variant outd and camo into clevrtex_outd and clevrtex_camo beside it
    python sweeps/clevrtex.py --dry-run            # the space, the trials, the resources, what is finished
    python sweeps/clevrtex.py                      # this machine's GPUs, one a trial
    ray submit cluster/gpu.yaml sweeps/clevrtex.py # a cluster
    python sweeps/clevrtex.py --smoke              # does all of it run? minutes on a laptop

The paper's setting and Slot Attention run first, with three seeds each; then 40 settings by TPE, which ASHA ends early; then the
best one with the other two seeds. The validation split chooses, the three test sets are only looked at.

Cost: one training of 312,500 steps is the unit; ASHA spends about 12 of them on the search, and the rest is 8, three of them of
500,000 steps.
Expected: the paper reports ARI-FG 80.2, on OOD 72.6, on CAMO 75.5 (Table 1), above Slot Attention on all three. Whether that holds
at equal tuning is the question; nobody has run this sweep whole yet.
"""

from cutslots.sweep import Halving, Setting, Sweep, choices, integers, log_uniform, main

SWEEP = Sweep(
    name="clevrtex",
    dataset="clevrtex",
    preset="paper-clevrtex",
    space={
        "cut.gamma": log_uniform(0.05, 5.0),
        "cut.gamma_edge": log_uniform(0.05, 20.0),
        "temperature.object": log_uniform(0.1, 2.0),
        "temperature.foreground": log_uniform(0.1, 3.0),
        "temperature.combined": log_uniform(0.03, 0.3),
        "num_slots": integers(9, 14),
        "weights.num_layers": choices(2, 3),
        "optim.learning_rate": log_uniform(1e-4, 1e-3),
    },
    first={"paper": Setting(), "slot-attention": Setting("slot-attention-clevrtex")},
    seeds=(0, 1, 2),
    trials=40,
    halving=Halving(first=0.08, factor=3),
    evaluate=("clevrtex", "clevrtex_outd", "clevrtex_camo"),
)

if __name__ == "__main__":
    main(SWEEP)
