"""`cutslots bench model` and the smaller benchmarks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cutslots import bench, options
from cutslots.bench import training
from cutslots.bench.training import VARIANTS, Variant
from cutslots.cli import main
from cutslots.train.config import preset

CPU = torch.device("cpu")
SMALL = ("encoder.channels=8", "weights.hidden=8", "slots.size=8", "slots.hidden=16")
PARTS = {"encoder", "object_weights", "foreground_weights", "cut", "slot_heads", "decoder"}


def tiny():
    config = preset("small")
    for assignment in (*SMALL, "decoder.channels=6", "batch_size=2"):
        config = options.override(config, assignment)
    return config


@pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if v.compile is None])
def test_every_eager_variant_takes_the_same_step(variant):
    result = training.measure_variant(variant, tiny(), CPU, 0.1)
    assert result["gradient_error"] < (1e-4 if variant.precision == "float32" else 0.2)
    assert 0 < result["fastest_seconds"] <= result["seconds"]
    assert result["flops_used"] > 0
    for part in PARTS:
        assert result["parts"][part]["forward"] > 0, part
        assert result["parts"][part]["backward"] > 0, part
    others = {"position", "color", "window", "optimizer", "rest"}
    assert set(result["parts"]) == PARTS | others


def test_a_wrong_gradient_is_refused(monkeypatch):
    build = training.build

    def wrong(variant, run, device):
        model, step = build(variant, run, device)
        if variant.channels_last:
            with torch.no_grad():
                model.decoder.position.project.weight.add_(1.0)
        return model, step

    monkeypatch.setattr(training, "build", wrong)
    with pytest.raises(ArithmeticError, match="gradient"):
        training.measure_variant(Variant(channels_last=True), tiny(), CPU, 0.1)


def test_steps_leave_the_weights_unchanged():
    model, step = training.build(Variant(), tiny(), CPU)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    step(torch.zeros(2, 32, 32, 3, dtype=torch.uint8))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


@pytest.mark.slow
def test_the_model_command(tmp_path, capsys):
    out = tmp_path / "model.json"
    command = ["bench", "model", "--device", "cpu", "--batch", "2", "--seconds", "0.1"]
    assert main([*command, "--variants", "float32,bfloat16", "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    assert (results["preset"], results["batch"]) == ("small", 2)
    assert [row["name"] for row in results["variants"]] == ["float32", "bfloat16"]
    for row in results["variants"]:
        assert row["status"] == "measured"
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert "time of float32" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "kkt"])  # which needs CuPy
def test_every_variant_of_a_gpu(name):
    run = preset("paper-clevr")
    run = replace(run, optim=replace(run.optim, batch_size=4))
    result = training.measure_variant(VARIANTS[name], run, torch.device("cuda"), 0.5)
    assert result["gradient_error"] < 0.2
    assert result["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("benchmark", "option", "value"),
    [
        ("solvers", "--methods", "dtc"),
        ("solvers", "--sizes", "0"),
        ("solvers", "--batches", "8,0"),
        ("model", "--preset", "small-video"),
        ("model", "--variants", "quick"),
        ("model", "--batch", "0"),
        ("tracking", "--trials", "0"),
        ("orchestration", "--trials", "5,0"),
    ],
)
def test_impossible_options_are_refused(benchmark, option, value, capsys):
    assert main(["bench", benchmark, option, value]) == 2
    message = capsys.readouterr().err
    assert option in message
    assert value.split(",")[-1] in message


@pytest.mark.slow
def test_tracking_measures_a_sweep_in_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("CUTSLOTS_HOME", str(tmp_path / "home"))  # the benchmark uses another
    out = tmp_path / "tracking.json"
    assert main(["bench", "tracking", "--trials", "4", "--json", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results["trials"] == 4
    for name in ("metrics_call", "latest", "log_trial", "children", "table"):
        assert 0 < results[f"{name}_seconds"] < 10, name
    assert not (tmp_path / "home").exists()


def test_batches_are_read_from_random_datasets(tmp_path):
    out = tmp_path / "batches.json"
    assert main(["bench", "batches", "--count", "320", "--epochs", "1", "--json", str(out)]) == 0
    small, large = json.loads(out.read_text())["sets"]
    assert 0 < small["set_bytes"] < large["set_bytes"]


def test_make_runs_every_benchmark():
    text = (Path(__file__).parents[2] / "Makefile").read_text()
    recipe = text.split("\nbenchmarks:")[1].split("\n\n")[0]
    loop = re.search(r"for name in ([a-z ]+);", recipe)
    assert loop
    assert {*loop[1].split(), *re.findall(r"bench ([a-z]+) ", recipe)} == set(bench.COMMANDS)
