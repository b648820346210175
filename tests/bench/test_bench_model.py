"""`cutslots bench model`: the plain model is the model, parts make up the step, and what cannot be measured says why."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cutslots import options
from cutslots.bench import _plain, _steps, model
from cutslots.bench._steps import Way
from cutslots.errors import InputError
from cutslots.train.config import RunConfig, preset

CPU = torch.device("cpu")
TINY = {
    "small": (
        "encoder.channels=8",
        "weights.hidden=8",
        "slots.size=8",
        "slots.hidden=16",
        "decoder.channels=6",
        "batch_size=2",
    ),
    "paper-clevr": (
        "image_size=16",
        "num_slots=3",
        "encoder.channels=6",
        "weights.hidden=5",
        "slots.size=7",
        "batch_size=2",
    ),
    "paper-clevrtex": (
        "image_size=16",
        "num_slots=3",
        "stem_channels=5",
        "encoder.channels=6",
        "weights.hidden=5",
        "batch_size=2",
    ),
}


def tiny(name: str) -> RunConfig:
    config = preset(name)
    for assignment in TINY[name]:
        config = options.override(config, assignment)
    return config


def side(way: Way, config: RunConfig, folder: Path) -> _steps._Side:
    model._write_images(folder / "set", config)
    return _steps._Side(way, config, CPU, folder / "set")


@pytest.mark.parametrize("name", TINY)
def test_the_plain_model_is_the_model(name):
    """Outputs and gradients in float64; `_truth` raises where they differ."""
    images, truth = model._truth(tiny(name))
    assert images.shape[0] == model.CHECKED_IMAGES
    assert max(truth["outputs_error"], truth["gradient_error"]) < 1e-10
    names = [each for each, _ in tiny(name).model.build().named_parameters()]
    assert list(truth["gradients"]) == names
    assert all(gradient.abs().max() > 0 for gradient in truth["gradients"].values())


def test_a_plain_model_that_is_another_is_refused(monkeypatch):
    right = _plain.build

    def wrong(config):
        built = right(config)
        with torch.no_grad():
            built.foreground_weights.last.weight.add_(1e-3)
        return built

    monkeypatch.setattr(_plain, "build", wrong)
    with pytest.raises(ArithmeticError, match="differs from the plain model"):
        model._truth(tiny("small"))


@pytest.mark.parametrize("name", TINY)
def test_operations_of_the_decoder_are_those_that_torch_counts(name):
    config = tiny(name)
    decoder = config.model.build().decoder
    with FlopCounterMode(display=False) as counter:
        pictures, opacity = decoder(torch.randn(1, 1, config.model.slots.size, requires_grad=True))
        (pictures.sum() + opacity.sum()).backward()
    counted = counter.get_flop_counts()["Global"]
    assert model.decoder_flops(config) == sum(
        number for operation, number in counted.items() if "convolution" in str(operation)
    )


@pytest.mark.parametrize("plain", [True, False])
def test_parts_make_up_a_step_and_change_nothing(plain, tmp_path):
    config = tiny("small")
    worker = side(Way("", plain=plain), config, tmp_path)
    images, truth = model._truth(config)
    worker.build()
    parts = worker.parts(2)
    assert set(parts) == {*_steps.PARTS, "data", "rest", "optimiser"}
    for part in _steps.PARTS:
        assert set(parts[part]) == {"forward", "backward"}, part
        assert min(parts[part].values()) > 0, part

    # The same gradients with the marks in place, and the marks in the order of the paper's way there and back.
    step = worker._prepared(len(images), 0.0)
    for part, names in _steps.PARTS.items():
        for name in names:
            _steps._mark(getattr(worker.model, name), part, lambda: worker.marks)
    worker.marks = _steps._Marks(CPU)
    step(worker._to_model(images))
    for name, parameter in worker.model.named_parameters():
        torch.testing.assert_close(
            parameter.grad.double(), truth["gradients"][name], atol=1e-6, rtol=1e-3
        )
    order = [name for name, _ in worker.marks.marks if name[0] != "rest"]
    there = [part for part, way in order if way == "forward"]
    assert list(dict.fromkeys(there)) == ["encoder", "weights", "cut", "slots", "decoder"]
    back = [part for part, way in order if way == "backward"]
    assert list(dict.fromkeys(back)) == ["decoder", "slots", "cut", "weights", "encoder"]


@pytest.mark.parametrize(
    "way",
    [way for way in model.WAYS["cpu"].values() if way.mode is None],
    ids=lambda way: way.title,
)
def test_every_eager_way_takes_the_same_step(way, tmp_path):
    config = tiny("small")
    images, truth = model._truth(config)
    errors = side(way, config, tmp_path).check(images, truth)
    assert max(errors.values()) < (1e-4 if way.precision == "float32" else 0.2)


def test_what_fails_has_its_reason_and_the_others_go_on(tmp_path):
    config = tiny("small")
    model._write_images(tmp_path / "set", config)
    images, truth = model._truth(config)
    ways = {
        "plain": model.WAYS["cpu"]["plain"],
        "graph": model.WAYS["cuda"]["graph"],
        "float32": Way("ours"),
    }
    arguments = argparse.Namespace(turns=2, steps=1)
    if torch.cuda.is_available():
        pytest.skip("here a graph would be captured")
    plain, graph, ours = model._measured(
        ways, config, "cpu", tmp_path / "set", images, truth, arguments
    )
    assert graph["status"] == "failed"
    assert "CUDA" in graph["reason"] or "cuda" in graph["reason"].lower()
    assert plain["status"] == ours["status"] == "measured"
    assert plain["ratios"] == [1.0, 1.0]
    assert len(ours["ratios"]) == 2
    assert "parts" in plain
    assert "parts" in ours
    # Wrong numbers are not timed.
    truth["gradients"]["decoder.layers.0.weight"] = (
        truth["gradients"]["decoder.layers.0.weight"] + 1.0
    )
    with pytest.raises(
        InputError, match="the plain model cannot be measured: its gradient is wrong"
    ):
        model._measured(ways, config, "cpu", tmp_path / "set", images, truth, arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preset": "small-video"},
            "for images with cuts there are: paper-clevr, paper-clevrtex, small",
        ),
        ({"batch": 0}, "--batch is 0; give at least 1"),
        ({"turns": 0}, "--turns is 0"),
        (
            {"ways": "plain,quick"},
            "--ways has 'quick'; on this device there are: plain, plain_kkt, malloc, float32",
        ),
    ],
)
def test_what_cannot_be_asked_for(changes, message):
    given = {"preset": None, "device": "cpu", "batch": None, "steps": 1, "turns": 1, "ways": None}
    with pytest.raises(InputError, match=message):
        model.run(argparse.Namespace(**{**given, **changes}))


@pytest.mark.slow
def test_the_command(tmp_path):
    out = tmp_path / "model.json"
    command = [
        sys.executable,
        "-m",
        "cutslots",
        "bench",
        "model",
        "--device",
        "cpu",
        "--batch",
        "2",
        "--steps",
        "1",
        "--turns",
        "2",
    ]
    done = subprocess.run(
        [*command, "--ways", "float32,bfloat16", "--json", out],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert (found["preset"], found["batch"], found["fit"]) == ("small", 2, "float32")
    assert [row["name"] for row in found["ways"]] == ["plain", "float32", "bfloat16"]
    for row in found["ways"]:
        assert row["status"] == "measured"
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
        assert row["decoder_share"] > 0
        assert row["title"].split(",")[0] in done.stdout
    assert found["headline"]["ratio_of_fit"] == found["ways"][1]["ratio"]
    assert found["same_model"]["gradient_error"] < 1e-10
    assert "Time of float32: " in done.stdout


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_way_of_a_gpu(tmp_path):
    given = {
        "preset": "paper-clevr",
        "device": "cuda",
        "batch": 4,
        "steps": 2,
        "turns": 2,
        "ways": None,
    }
    found = model.run(argparse.Namespace(**given))
    rows = {row["name"]: row for row in found["ways"]}
    assert set(rows) == set(model.WAYS["cuda"])
    needed = set(rows) - {"plain_kkt"}  # which needs CuPy
    assert {name: rows[name].get("reason") for name in needed} == dict.fromkeys(needed)
    assert max(rows[name]["errors"]["gradient_error"] for name in needed) < 0.2
    assert set(rows["bfloat16"]["parts"]) == {*_steps.PARTS, "data", "rest", "optimiser"}
