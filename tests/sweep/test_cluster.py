"""How many trials fit on a cluster."""

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
        (Resources(workers=3, gpus=1, cpus=2), CLUSTER, 1),
        (Resources(gpus=1, cpus=6), CLUSTER, 2),
        (Resources(gpus=0.6, cpus=1), CLUSTER, 4),
        (Resources(gpus=0.3, cpus=1), CLUSTER, 12),
    ],
)
def test_number_of_fitting_trials(need, nodes, count):
    assert fitting(need, nodes) == count


@pytest.mark.parametrize(
    ("need", "nodes", "message"),
    [
        (Resources(gpus=8, cpus=2), LAPTOP, "8 GPU .* has 0. Lower --gpus-per-trial"),
        (Resources(workers=64), LAPTOP, "64 CPU .* --cpus-per-trial or --workers-per-trial"),
        (Resources(gpus=4, cpus=2), CLUSTER, "No node .* the largest has 8 CPUs and 2 GPUs"),
        (Resources(workers=3, gpus=1, cpus=6), CLUSTER, "3 workers .* the largest has 8 CPUs"),
    ],
)
def test_impossible_resources_are_refused(need, nodes, message):
    with pytest.raises(InputError, match=message):
        fitting(need, nodes)


def test_autoscaling_cluster_counts_at_its_limit(monkeypatch):
    head = [{"CPU": 4.0}]
    monkeypatch.setenv("CUTSLOTS_CLUSTER", "GPU=8,CPU=68")
    assert fitting(Resources(gpus=1, cpus=2), head) == 8
    assert fitting(Resources(workers=4, gpus=1, cpus=2), head) == 2
    with pytest.raises(InputError, match="CUTSLOTS_CLUSTER"):
        fitting(Resources(workers=9, gpus=1, cpus=2), head)
    monkeypatch.setenv("CUTSLOTS_CLUSTER", "eight GPUs")
    with pytest.raises(InputError, match="CUTSLOTS_CLUSTER .*'eight GPUs'"):
        fitting(Resources(), head)
