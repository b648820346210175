"""What a user of Ray Tune sees of a sweep."""

from pathlib import Path

import pytest

from cutslots.sweep import Baseline, Sweep, loguniform, randint
from cutslots.sweep.cluster import Resources, connected
from cutslots.sweep.driver import RunOptions, SweepDriver
from cutslots.sweep.trial import Report, TrialResult, TrialSpec
from cutslots.train import Ranks


@pytest.mark.slow
def test_tune_has_parameters_and_metrics(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONBREAKPOINT", "")  # Ray sets it
    from cutslots.sweep import ray_backend

    def trial(spec: TrialSpec, report: Report, ranks: Ranks) -> TrialResult:
        for step in (1, 2):
            report(step, {"ari_fg": 0.1 * step + spec.number, "mse": 5.0})
        return TrialResult("finished", 2, {"ari_fg": 0.2 + spec.number, "mse": 5.0, "step": 2.0})

    space = {"cut.gamma": loguniform(0.1, 1.0), "num_slots": randint(3, 5)}
    sweep = Sweep("s", "scenes", "small", space, baselines={"paper": Baseline()}, trials=2)
    need = Resources()
    driver = SweepDriver(sweep, tmp_path, RunOptions(scenes, need))
    with connected():
        grid = ray_backend.run(driver, need, 2, 0, trial)
    assert grid is not None
    results = {result.config["trial"]["number"]: result for result in grid if result.config}
    assert len(results) == len({str(result.path) for result in grid}) == 3
    for number, stored in enumerate(driver.study.trials()):
        config, metrics = results[number].config, results[number].metrics
        assert config is not None
        assert metrics is not None
        assert all(config[path] == value for path, value in stored.params.items())
        assert (config["seed"], config.get("baseline")) == (0, None if number else "paper")
        assert metrics["ari_fg"] == stored.value == 0.2 + number
        assert (metrics["step"], metrics["state"]) == (2, "finished")
        assert stored.intermediate_values == {1: 0.1 + number, 2: 0.2 + number}
    assert [trial.state for trial in driver.trials()] == ["finished"] * 3
