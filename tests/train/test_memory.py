"""Freed memory is kept and not got anew; moments of a run that another device wrote come in the weights' order."""

import subprocess
import sys
import textwrap

import pytest
import torch

from cutslots.train import checkpoint, fit
from cutslots.train.memory import keep_freed_memory

FAULTS = """
    import resource
    import sys
    import torch
    from cutslots.train.memory import keep_freed_memory

    if sys.argv[1] == "keep":
        assert keep_freed_memory()
    for block in (2**22, 3 * 2**24):
        for step in range(8):
            if step == 3:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            blocks = [torch.ones(block // 4) for _ in range(6)]
            del blocks
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not keep_freed_memory(), reason="malloc is not glibc's"
)
def test_what_is_freed_is_there_for_the_next_step():
    """Blocks of 4 MB, which malloc by itself keeps or not by how they lie, and of 48 MB, which it never keeps."""
    faults = {}
    for way in ("keep", "default"):
        command = [sys.executable, "-c", textwrap.dedent(FAULTS), way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[way] = [int(line) for line in done.stdout.split()]
    assert max(faults["keep"]) < 100
    assert faults["default"][1] > 10_000


def test_a_run_goes_on_from_weights_and_moments_in_another_memory_order(config, data_dir, tmp_path):
    """As from a GPU, where they lie channels-last: the same bits as from its own checkpoint."""
    ended = []
    for order in (torch.contiguous_format, torch.channels_last):
        run = tmp_path / str(order)
        fit(config, data_dir, run, stop=lambda: True)
        (path,) = checkpoint.steps(run / "checkpoints")
        state = checkpoint.load(path)
        of_pictures = 0
        for tensors in (state["model"], *state["optimizer"]["state"].values()):
            for name, tensor in tensors.items():
                if tensor.dim() == 4:
                    tensors[name] = tensor.contiguous(memory_format=order)
                    of_pictures += 1
        assert of_pictures
        checkpoint.save(path, state, keep_last=9)
        ended.append(fit(config, data_dir, run, resume=True).model.state_dict())
    for name, tensor in ended[0].items():
        assert torch.equal(tensor, ended[1][name]), name
