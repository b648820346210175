"""The command line: the whole path from data to MLflow once, and bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from fixtures_runs import OVERRIDES

from cutslots.cli import COMMANDS, group, main
from cutslots.cli.doctor import tracking_store
from cutslots.data import Manifest
from cutslots.files import home
from cutslots.runs.lookup import finished, stored_run

SMALLEST = [*OVERRIDES, "--set", "eval_every=5", "--set", "log_every=2"]


def prepared(size: int) -> Path:
    assert main(["prepare", "scenes", "--count", "50", "--size", str(size)]) == 0
    return home() / "data" / "scenes"


@pytest.fixture
def scenes() -> Path:
    return prepared(32)


@pytest.fixture
def client(copy_database: Callable[[Path], Path]) -> Any:
    """A client of this test's tracking store."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{copy_database(home()) / 'mlflow.db'}")


def logged(client: Any, experiment: str = "scenes") -> Any:
    """The only run of an experiment."""
    (run,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return run


def refused(arguments, capsys) -> str:
    """The message of a command that must fail with status 2."""
    assert main(arguments) == 2, arguments
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_from_nothing_to_a_scored_model_in_mlflow(client, capsys, tmp_path):
    """With data twice the model's size, as CLEVR's is."""
    import mlflow

    from cutslots.train import load_model, predict

    scenes = prepared(64)
    assert main(["check", str(scenes)]) == 0
    assert main(["check", "scenes"]) == 0
    for _ in range(2):
        assert main(["train", "scenes", "--steps", "10", "--name", "first", *SMALLEST]) == 0
    assert "already finished" in capsys.readouterr().out
    file = tmp_path / "scores.json"
    assert main(["evaluate", "first", "--data", str(scenes), "--json", str(file)]) == 0
    assert "ARI-FG" in capsys.readouterr().out
    scores = json.loads(file.read_text())["sets"][0]["scores"]
    assert {"ari_fg", "ari", "miou", "mse", "cut_ari_fg", "cut_ari", "cut_miou"} <= scores.keys()
    assert scores["num_images"] == 5

    run = logged(client)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.cut.gamma"] == "0.5"
    assert {"signature", "commit", "dataset", "model"} <= set(run.data.tags)
    assert run.data.metrics["scenes/test/ari_fg"] == pytest.approx(scores["ari_fg"])
    for name, steps in (("val/ari_fg", [5, 10]), ("train/loss", [2, 4, 6, 8, 10])):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == steps
    assert any(name.startswith("system/") for name in run.data.metrics)
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "scenes"
    manifest = json.loads((scenes / "manifest.json").read_text())
    assert json.loads(data.dataset.profile) == manifest
    assert manifest["splits"]["train"]["count"] == 40
    artifacts = {
        folder: [file.path for file in client.list_artifacts(run.info.run_id, folder)]
        for folder in (None, "figures", "examples")
    }
    assert "manifest.json" in artifacts[None]
    assert artifacts["figures"] == ["figures/step-00000005.png", "figures/step-00000010.png"]
    best = f"examples/step-{run.data.metrics['best/step']:08.0f}.png"
    assert artifacts["examples"] == [best], "of the best evaluation alone"

    # The run's folder, the exported folder and MLflow hold the same model.
    images = np.full((2, 32, 32, 3), (255, 0, 0), np.uint8)
    mlflow.set_tracking_uri(f"sqlite:///{home() / 'mlflow.db'}")
    segmenter = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    masks = segmenter.predict(images)
    assert segmenter.predict(images.repeat(2, 1).repeat(2, 2)).shape == masks.shape == (2, 32, 32)
    for path in (home() / "runs" / "first", home() / "runs" / "first" / "model"):
        np.testing.assert_array_equal(predict(load_model(path), images)["masks"], masks)
    # By MLflow id too; scores on part of a split are not logged.
    again = ["evaluate", run.info.run_id, "--data", str(scenes), "--split", "val"]
    assert main([*again, "--images", "2"]) == 0
    assert "scenes/val/ari_fg" not in logged(client).data.metrics
    assert main(again) == 0
    assert "scenes/val/ari_fg" in logged(client).data.metrics
    (store,) = tracking_store()
    assert (store.mark, store.text.split(", ")[-1]) == ("ok", "experiments: 1")


def test_resume_after_an_interrupt(client, scenes, capsys):
    arguments = ["train", "scenes", "--name", "again", "--set", "checkpoint_every=5", *SMALLEST]
    assert main([*arguments, "--steps", "5"]) == 0
    assert "already holds this run, at step 5" in refused([*arguments, "--steps", "10"], capsys)
    assert main([*arguments, "--steps", "10", "--resume"]) == 0
    assert main(["train", "scenes", "--resume", "again", "--steps", "15"]) == 0
    captured = capsys.readouterr()
    assert "of 15" in captured.out
    assert "refused" not in captured.err
    assert json.loads((home() / "runs" / "again" / "mlflow.json").read_text())["refused"] == 0
    run = logged(client)
    assert run.data.tags["train.steps"] == "15"
    assert "train.steps" not in run.data.params
    folder, config, _ = stored_run("again")
    assert finished(folder, config, Manifest.load(scenes).digest)
    assert finished(folder, config, "of other data") is None


@pytest.mark.slow
def test_debug_stays_in_one_process_and_thread(scenes):
    """A breakpoint in the loss stops in the main thread of the very process that was started."""
    script = (
        "import sys, threading, torch\n"
        "from cutslots.cli import main\n"
        "from cutslots.models.min_cut_slots import MinCutSlots\n"
        "real = MinCutSlots.loss\n"
        "def loss(model, outputs, images):\n"
        "    assert threading.current_thread() is threading.main_thread()\n"
        "    assert 'ray' not in sys.modules\n"
        "    assert torch.is_anomaly_enabled()\n"
        "    assert 'system metrics' not in [thread.name for thread in threading.enumerate()]\n"
        "    breakpoint()\n"
        "    return real(model, outputs, images)\n"
        "MinCutSlots.loss = loss\n"
        f"words = ['--data', {str(scenes)!r}, '--debug', '--steps', '1', *{SMALLEST!r}]\n"
        "sys.exit(main(['train', 'scenes', *words]))\n"
    )
    command = [sys.executable, "-c", script]
    typed = "p outputs.alpha.shape\nc\n"
    done = subprocess.run(command, input=typed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size([8, 4, 32, 32])" in done.stdout


BAD_INPUT = """
train scenes --preset paper-clever                           | paper-clevr
train scenes --set cut.gama=1                                | cut.gamma
train scenes --set cut.gamma                                 | NAME=VALUE
train scenes --steps 0                                       | train.steps
train scene                                                  | scenes
train clevr                                                  | cutslots prepare
train clevr --data {scenes}                                  | cutslots train scenes
train scenes --data {missing}                                | missing
train scenes --resume no-such-run                            | no-such-run
train scenes --set optim.batch_size=999                      | batch_size
train scenes --preset paper-clevr --set batch_size=8         | 32 x 32
train scenes --name a/b                                      | --name
train scenes --stepz 3                                       | --steps
evaluate no-such-run --data {scenes}                         | no-such-run
evaluate {other} --data {scenes}                             | do not fit
evaluate x --data {scenes} --json {scenes}                   | --json
evaluate x --data {scenes} --figure a.xyz                    | --figure
evaluate x --data {scenes} --images 0                        | --images
check {missing}                                              | cutslots prepare
check {scenes}/manifest.json                                 | manifest.json
prepare clevr {missing} {out}                                | {missing}
prepare scenes {out} --style plane                           | plain
prepare scenes {out} --count few                             | int
prepare clever a b                                           | clever
prepare scenes {scenes} --seed 5                             | seed
sync {missing}                                               | {missing}
sync one two                                                 | two
trian scenes                                                 | train
ui                                                           | cutslots train scenes
""".strip().splitlines()


def test_bad_input_names_the_argument_or_the_remedy(scenes, tmp_path, capsys):
    from cutslots.train import checkpoint
    from cutslots.train.config import preset, to_json

    other = tmp_path / "step-00000001.pt"  # its weights are another model's
    weights = preset("paper-clevr").model.build().state_dict()
    state = {"config": to_json(preset("small")), "model": weights, "step": 1}
    checkpoint.save(other, state, 1)
    paths = {"scenes": scenes, "missing": tmp_path / "missing", "out": tmp_path / "out"}
    for line in BAD_INPUT:
        command, fact = (part.strip().format(other=other, **paths) for part in line.split("|"))
        assert fact in refused(command.split(), capsys), command
        assert not (home() / "runs").exists(), f"{command}: a refused command leaves no run"


@pytest.mark.slow
def test_unreachable_tracking_server_does_not_stop_training(client, scenes, monkeypatch, capsys):
    """Nothing listens on that port; the run finishes, reports it once, and is delivered later."""
    from cutslots.tracking import default_uri, sync

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    # The second failure reports an outage.
    monkeypatch.setattr("cutslots.runs.mlflow_callback.DELIVERY_SECONDS", 6)
    assert main(["train", "scenes", "--steps", "10", "--name", "alone", *SMALLEST]) == 0
    error = capsys.readouterr().err
    assert error.count("unreachable") == 1
    assert "cutslots sync" in error
    assert (home() / "runs" / "alone" / "checkpoints" / "step-00000010.pt").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert sync(home() / "runs" / "alone", tracking_uri=default_uri()) == 0
    run = logged(client)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [point.step for point in points] == [2, 4, 6, 8, 10]
    model = [file.path for file in client.list_artifacts(run.info.run_id, "model")]
    assert "model/MLmodel" in model


def test_version_does_not_import_torch():
    command = [sys.executable, "-X", "importtime", "-m", "cutslots", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cutslots ")
    assert "torch" not in done.stderr
    import cutslots
    from cutslots.qp import MinCut

    assert cutslots.MinCut is MinCut
    assert "MinCut" in dir(cutslots)
    with pytest.raises(AttributeError, match="has no attribute 'MaxCut'"):
        cutslots.MaxCut  # noqa: B018


def test_every_command_has_help(capsys):
    commands = [([name], group.get_command(click.Context(group), name)) for name in COMMANDS]
    texts = {}
    for words, command in commands:
        assert command is not None
        if isinstance(command, click.Group):
            context = click.Context(command)
            commands += [
                ([*words, name], command.get_command(context, name))
                for name in command.list_commands(context)
            ]
        assert main([*words, "--help"]) == 0
        name = " ".join(words)
        texts[name] = capsys.readouterr().out
        assert f"Usage: cutslots {name}" in texts[name]
        assert "-h, --help" in texts[name]
    assert "--count INT" in texts["prepare scenes"]
    for fact in ("model.cut.gamma_terminal", "paper-clevrtex", "cnn | resnet", ">= 1"):
        assert fact in texts["train"]


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from cutslots.cli import main\n"
        "main(['--help'])\n"
        "heavy = ('torch', 'cutslots.data', 'mlflow', 'ray', 'pyarrow')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    names = [line.split()[0] for line in output.splitlines() if line.startswith("  ")]
    assert [name for name in names if name in COMMANDS] == list(COMMANDS)


def test_presets_prints_parameter_counts(capsys):
    assert main(["presets"]) == 0
    text = capsys.readouterr().out
    assert "1,439,580 parameters" in text
    assert "1,920,752 parameters" in text


def test_check_finds_damage(scenes, capsys):
    shard = scenes / "train-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["check", str(scenes)]) == 1
    assert "train-00000.arrow" in capsys.readouterr().err
