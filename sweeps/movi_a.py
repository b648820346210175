"""Does matching slots by a quadratic program follow objects through a clip? MOVi-A, whole clips.

    cutslots prepare movi_a RAW                    # once; or set CUTSLOTS_DATA to its parent folder
    python sweeps/movi_a.py --dry-run              # the space, the trials, the resources
    python sweeps/movi_a.py                        # this machine's GPUs, one per trial
    ray submit cluster/gpu.yaml sweeps/movi_a.py   # a cluster
    python sweeps/movi_a.py --smoke                # tests everything in minutes; needs the dataset

The paper's configuration and Slot Attention (frame by frame, with chained slots) run first with
three seeds each, then 30 trials by TPE, which ASHA stops early, then the best with the other two
seeds. Trained on pairs of frames; the paper names neither their distance nor the temperature.

Cost: a training of 312,500 steps on pairs is the unit. The search takes about 9 units, the rest 8.
Expected: the paper reports ARI-FG 65.6 and ARI 77.7 (section 6.3). Not run yet.
"""

from cutslots.sweep import ASHA, Baseline, Sweep, choice, loguniform, main

SWEEP = Sweep(
    name="movi_a",
    dataset="movi_a",
    preset="paper-movi",
    space={
        "cut.gamma": loguniform(0.05, 5.0),
        "cut.reach": loguniform(0.3, 8.0),
        "temperature.foreground": loguniform(0.1, 5.0),
        "matching.temperature": loguniform(0.02, 1.0),  # only its product with gamma matters
        "model.distance": choice(1, 2, 5),
        "optim.learning_rate": loguniform(1e-4, 1e-3),
    },
    baselines={
        "paper": Baseline(),
        "slot-attention": Baseline("slot-attention-clevr", ("num_slots=8",)),
    },
    seeds=(0, 1, 2),
    objective="video_miou",
    trials=30,
    halving=ASHA(grace_period=0.08, reduction_factor=3),
    test_datasets=("movi_a",),
    smoke_preset="small-video",
)

if __name__ == "__main__":
    main(SWEEP)
