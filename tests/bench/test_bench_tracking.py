"""The benchmark of logging: its figures, on a few trials."""

import json
from pathlib import Path

import pytest

from cutslots.cli import main


@pytest.mark.slow
def test_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(
        "CUTSLOTS_HOME", str(tmp_path / "home")
    )  # the benchmark takes another, and this takes it back
    assert (
        main(["bench", "tracking", "--trials", "4", "--json", str(tmp_path / "figures.json")]) == 0
    )
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["trials"] == 4
    for name in (
        "children_seconds",
        "table_seconds",
        "log_trial_seconds",
        "step_seconds",
        "latest_seconds",
    ):
        assert 0 < figures[name] < 10, name
    assert 0 < figures["metrics_call_share"] < 0.2
    assert "4 trials in SQLite" in capsys.readouterr().out
    assert not (tmp_path / "home").exists()


def test_no_trials_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tracking", "--trials", "0"]) == 2
    assert capsys.readouterr().err == "error: --trials is 0; give at least 1.\n"
