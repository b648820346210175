"""How far should a cut smooth? On plain, textured and camouflaged scenes; not asked in the paper.

    python sweeps/reach.py               # three sweeps in turn; --only reach-plain runs one
    python sweeps/reach.py --dry-run     # the space, the trials, the resources
    cutslots report reach-plain reach-textured reach-camouflage --compare cut.reach

A potential is an average of the edges within `sqrt(gamma_edge / (gamma_terminal + gamma_vertex))`
pixels: 0.7 in the paper for every gamma. Here gamma_edge is fixed and the other two follow from the
reach, with cuts of 16 x 16 on images of 32 x 32. Slot Attention has the same encoder and decoder.

Cost: 54 trainings of 2,500 steps, about an hour on 2 idle cores.
Expected: with the preset before its recipe (results/LOG.md), the reaches differed less than the
seeds. With the recipe this sweep has not been run yet.
"""

from cutslots.sweep import Baseline, Sweep, choice, main

STYLES = {"plain": "scenes", "textured": "scenes-textured", "camouflage": "scenes-camouflage"}
STEPS = ("train.steps=2500", "train.eval_every=500")

SWEEP = [
    Sweep(
        name=f"reach-{style}",
        dataset=dataset,
        dataset_options={"style": style},
        preset="small",
        overrides=STEPS,
        space={"cut.reach": choice(0.35, 0.7, 1.4, 2.8, 5.6)},
        baselines={"slot-attention": Baseline("slot-attention-small", STEPS)},
        objective="miou",
        search="grid",
        seeds=(0, 1, 2),
    )
    for style, dataset in STYLES.items()
]

if __name__ == "__main__":
    main(*SWEEP)
