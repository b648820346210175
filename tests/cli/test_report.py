"""`cutslots report` on the command line."""

from pathlib import Path

import pytest

from cutslots.cli import main
from cutslots.tracking import RunLog


def sweep(folder: Path, name: str) -> None:
    """A sweep of one finished run."""
    with RunLog(folder / name, experiment="e", run_name=name) as above:
        above.params({"dataset": "scenes", "objective": "mse"})
        above.tags({"kind": "sweep", "sweep": name, "state": "finished"})
        above.close("FINISHED", 60)
    with RunLog(
        folder / f"{name}-0",
        experiment="e",
        run_name=f"{name}-0",
        parent_run_id=above.run_id,
    ) as log:
        log.params({"train.seed": 0})
        log.tags(
            {
                "sweep": name,
                f"sweep.{name}": 0,
                "state": "finished",
                "signature": "0123456789ab",
                "commit": "c" * 40,
            }
        )
        log.metrics(5, {"val/mse": 20.0, "best/mse": 20.0, "best/step": 5})
        log.close("FINISHED", 60)


def test_all_or_named_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        sweep(tmp_path / "runs", name)
    with RunLog(tmp_path / "runs" / "bare", experiment="e", run_name="bare") as log:
        log.tags({"kind": "sweep", "sweep": "bare", "state": "running"})
    assert main(["report", "--out", str(tmp_path / "all")]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(tmp_path / "all" / name) for name in ("one", "two")]
    assert "'bare'" in output.err
    for name in ("one", "two"):
        text = (tmp_path / "all" / name / "index.html").read_text()
        assert f"<h1>Sweep {name}</h1>" in text
        assert "20.00" in text
        assert "0123456789ab" in text
    assert main(["report", "two", "two", "--out", str(tmp_path / "some")]) == 0
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["two"]
    for path in (tmp_path / "some" / "two").iterdir():
        assert path.read_bytes() == (tmp_path / "all" / "two" / path.name).read_bytes()

    assert main(["report", "three"]) == 2
    assert "bare, one, two" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", "one", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_empty_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert main(["report", "demo"]) == 2
    assert list(tmp_path.iterdir()) == [], "nothing is written, and looking makes no store"
