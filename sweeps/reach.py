"""How far should a cut smooth? The question that the paper does not ask, on plain, textured and camouflaged scenes.

    python sweeps/reach.py                    # three sweeps, one after the other; --only reach-plain takes one
    python sweeps/reach.py --dry-run          # the space, the trials, the resources, what is finished
    cutslots report reach-plain reach-textured reach-camouflage --compare cut.reach

A potential is an average of what edges say within `sqrt(gamma_edge / (gamma_terminal + gamma_vertex))` pixels: 0.7 at the paper's
single gamma, whatever gamma is. Here gamma_edge stays and the other two follow from the reach, on 16 x 16 cuts of 32 x 32 images.
Slot Attention between the same encoder and decoder stands beside it.

Cost: 54 trainings of 1,000 steps, about half an hour on 2 quiet cores.
Found (results/LOG.md): on plain scenes all reaches are within what seeds differ; on the others 1,000 steps teach nothing at any.
Expected: the same; --set train.steps=N asks again with more.
"""

from cutslots.sweep import Setting, Sweep, choices, main

STYLES = {"plain": "scenes", "textured": "scenes-textured", "camouflage": "scenes-camouflage"}
STEPS = ("train.steps=1000", "train.eval_every=250")

SWEEP = [
    Sweep(
        name=f"reach-{style}",
        dataset=dataset,
        make={"style": style},
        preset="small",
        set=(*STEPS, "cut.gamma_terminal=none", "cut.gamma_vertex=none"),
        space={"cut.reach": choices(0.35, 0.7, 1.4, 2.8, 5.6)},
        first={"slot-attention": Setting("slot-attention-small", STEPS)},
        search="grid",
        seeds=(0, 1, 2),
    )
    for style, dataset in STYLES.items()
]

if __name__ == "__main__":
    main(*SWEEP)
