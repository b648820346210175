"""How far should a cut smooth? On plain, textured and camouflaged scenes; not asked in the paper.

    python sweeps/reach.py               # three sweeps in turn; --only reach-plain runs one
    python sweeps/reach.py --dry-run     # the space, the trials, the resources
    cutslots report reach-plain reach-textured reach-camouflage --compare cut.reach

A potential is an average of the edges within `sqrt(gamma_edge / (gamma_terminal + gamma_vertex))`
pixels: 0.7 in the paper for every gamma. Here gamma_edge is fixed and the other two follow from the
reach, with cuts of 16 x 16 on images of 32 x 32. Slot Attention has the same encoder and decoder.

Cost: 54 trainings of 1,000 steps, about half an hour on 2 idle cores.
Expected (measured, results/LOG.md): on plain scenes the reaches differ less than the seeds; on the
others 1,000 steps are too few at any reach. Use --set train.steps=N for more.
"""

from cutslots.sweep import Baseline, Sweep, choice, main

STYLES = {"plain": "scenes", "textured": "scenes-textured", "camouflage": "scenes-camouflage"}
STEPS = ("train.steps=1000", "train.eval_every=250")

SWEEP = [
    Sweep(
        name=f"reach-{style}",
        dataset=dataset,
        dataset_options={"style": style},
        preset="small",
        overrides=(*STEPS, "cut.gamma_terminal=none", "cut.gamma_vertex=none"),
        space={"cut.reach": choice(0.35, 0.7, 1.4, 2.8, 5.6)},
        baselines={"slot-attention": Baseline("slot-attention-small", STEPS)},
        search="grid",
        seeds=(0, 1, 2),
    )
    for style, dataset in STYLES.items()
]

if __name__ == "__main__":
    main(*SWEEP)
