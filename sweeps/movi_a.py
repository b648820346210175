"""Does matching slots by a quadratic program follow objects through a clip? MOVi-A, pairs of frames, scored over whole clips.

    cutslots prepare movi_a RAW                    # once; or CUTSLOTS_DATA names where it lies
    python sweeps/movi_a.py --dry-run              # the space, the trials, the resources, what is finished
    python sweeps/movi_a.py                        # this machine's GPUs, one a trial
    ray submit cluster/gpu.yaml sweeps/movi_a.py   # a cluster
    python sweeps/movi_a.py --smoke                # does all of it run? minutes on a laptop; needs the prepared set

The paper's setting and Slot Attention, frame by frame with chained slots, run first, with three seeds each; then 30 settings by
TPE, which ASHA ends early; then the best one with the other two seeds. The paper names no temperature of the matching and no
distance of frames.

Cost: one training of 312,500 steps on pairs is the unit; ASHA spends about 9 of them on the search, the rest is 8.
Expected: the paper reports ARI-FG 65.6 and ARI 77.7 (section 6.3); nobody has run this sweep whole yet.
"""

from cutslots.sweep import Halving, Setting, Sweep, choices, log_uniform, main

SWEEP = Sweep(
    name="movi_a",
    dataset="movi_a",
    preset="paper-movi",
    space={
        "cut.gamma": log_uniform(0.05, 5.0),
        "cut.gamma_edge": log_uniform(0.05, 20.0),
        "matching.temperature": log_uniform(
            0.02, 1.0
        ),  # its gamma counts only as a product with it
        "model.distance": choices(1, 2, 5),
        "optim.learning_rate": log_uniform(1e-4, 1e-3),
    },
    first={"paper": Setting(), "slot-attention": Setting("slot-attention-clevr", ("num_slots=8",))},
    seeds=(0, 1, 2),
    objective="video_ari_fg",
    trials=30,
    halving=Halving(first=0.08, factor=3),
    evaluate=("movi_a",),
    smoke="small-video",
)

if __name__ == "__main__":
    main(SWEEP)
