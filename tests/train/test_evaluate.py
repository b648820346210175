"""Devices by name, scores and predictions: what is asked for at the edges."""

import numpy as np
import pytest
import torch

from cutslots.data import Batches
from cutslots.errors import InputError
from cutslots.train import evaluate, predict
from cutslots.train.inputs import pick_device


def test_devices_by_name(monkeypatch):
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(None) == torch.device("cpu")
    with pytest.raises(InputError, match=r"'cuda:1', but this machine has no usable CUDA device"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device(None) == torch.device("cuda")
    with pytest.raises(InputError, match=r"'cuda:1', but the last CUDA device is cuda:0"):
        pick_device("cuda:1")


@pytest.mark.parametrize("name", ["foo", "", "meta", "cuda:x"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match=f"device '{name}' is unknown. Use cpu or cuda."):
        pick_device(name)


def test_how_many_images_are_scored(config, data_dir):
    model, cpu = config.model.build(), torch.device("cpu")
    batches = Batches(data_dir, "train", 8, shuffle=False)
    assert evaluate(model, batches, cpu, 3)[0]["num_images"] == 3
    for wrong in (0, -1):
        with pytest.raises(InputError, match=f"number of images is {wrong}; give at least 1"):
            evaluate(model, batches, cpu, wrong)


def test_predictions_do_not_depend_on_the_batch_and_may_be_none(config):
    torch.manual_seed(0)
    model = config.model.build().eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    whole, parts, none = (
        predict(model, images),
        predict(model, images, batch_size=2),
        predict(model, images[:0]),
    )
    for name, shape in (
        ("masks", (32, 32)),
        ("cut_masks", (32, 32)),
        ("reconstructions", (32, 32, 3)),
    ):
        assert whole[name].shape == (5, *shape)
        assert none[name].shape == (0, *shape)
        assert none[name].dtype == np.uint8
        assert np.mean(whole[name] != parts[name]) < 0.01, (
            name
        )  # rounding may differ between batch sizes
    with pytest.raises(InputError, match="no whole fraction"):
        predict(model, np.zeros((0, 48, 48, 3), np.uint8))
    with pytest.raises(InputError, match="batch_size is 0"):
        predict(model, images, batch_size=0)
