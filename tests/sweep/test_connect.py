"""How many trials fit on a cluster, and that what never fits is refused at once."""

import pytest

from cutslots.errors import InputError
from cutslots.sweep.cluster import Resources, fitting

LAPTOP = [{"CPU": 2.0, "node:__internal_head__": 1.0}]
CLUSTER = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("need", "nodes", "count"),
    [
        (Resources(), LAPTOP, 2),
        (Resources(cpus=2), LAPTOP, 1),
        (Resources(cpus=0.5), LAPTOP, 4),
        (Resources(workers=2), LAPTOP, 1),
        (Resources(gpus=1, cpus=2), CLUSTER, 4),
        (Resources(gpus=0.5, cpus=1), CLUSTER, 8),
        (Resources(workers=4, gpus=1, cpus=2), CLUSTER, 1),
        (Resources(workers=3, gpus=1, cpus=2), CLUSTER, 1),
        (Resources(gpus=1, cpus=6), CLUSTER, 2),
        (Resources(gpus=0.6, cpus=1), CLUSTER, 4),
        (Resources(gpus=0.3, cpus=1), CLUSTER, 12),
    ],
)
def test_how_many_fit(need, nodes, count):
    assert fitting(need, nodes) == count


@pytest.mark.parametrize(
    ("need", "nodes", "message"),
    [
        (Resources(gpus=8, cpus=2), LAPTOP, "takes 8 GPU .* has 0. Lower --gpus-per-trial"),
        (Resources(cpus=3), LAPTOP, "takes 3 CPU .* has 2. Lower --cpus-per-trial"),
        (
            Resources(workers=64),
            LAPTOP,
            "takes 64 CPU .* Lower --cpus-per-trial or --workers-per-trial",
        ),
        (
            Resources(gpus=4, cpus=2),
            CLUSTER,
            "fit on no node of this cluster; its largest has 8 CPU and 2 GPU",
        ),
        (Resources(workers=3, gpus=1, cpus=6), CLUSTER, "fit on no set of nodes"),
    ],
)
def test_what_never_fits_is_refused(need, nodes, message):
    with pytest.raises(InputError, match=message):
        fitting(need, nodes)


def test_a_cluster_that_grows_counts_as_grown():
    head = [{"CPU": 4.0}]
    assert fitting(Resources(gpus=1, cpus=2), head, "GPU=8,CPU=68") == 8
    assert fitting(Resources(workers=4, gpus=1, cpus=2), head, "GPU=8,CPU=68") == 2
    assert fitting(Resources(gpus=0.6, cpus=2), head, "GPU=8,CPU=68") == 8
    with pytest.raises(InputError, match="even when grown to all that CUTSLOTS_CLUSTER allows"):
        fitting(Resources(workers=9, gpus=1, cpus=2), head, "GPU=8,CPU=68")
    with pytest.raises(InputError, match="write it as"):
        fitting(Resources(), head, "eight GPUs")
