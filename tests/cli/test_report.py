"""`cutslots report` on the command line."""

from fixtures_runs import log_run

from cutslots.cli import main
from cutslots.files import home


def test_all_or_named_sweeps(tmp_path, capsys, copy_database):
    runs = copy_database(home()) / "runs"
    for name in ("one", "two"):
        tags = {"kind": "sweep", "sweep": name, "state": "finished"}
        params = {"dataset": "scenes", "objective": "mse"}
        parent = log_run(runs / name, params=params, tags=tags)
        tags = {"sweep": name, f"sweep.{name}": 0, "state": "finished"}
        log_run(
            runs / f"{name}-0",
            parent=parent,
            params={"train.seed": 0},
            tags={**tags, "signature": "0123456789ab", "commit": "c" * 40},
            metrics={"val/mse": 20.0, "best/mse": 20.0, "best/step": 5},
            step=5,
        )
    log_run(runs / "bare", tags={"kind": "sweep", "sweep": "bare", "state": "running"})
    assert main(["report", "--out", str(tmp_path / "all")]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(tmp_path / "all" / name) for name in ("one", "two")]
    assert "'bare'" in output.err
    for name in ("one", "two"):
        text = (tmp_path / "all" / name / "index.html").read_text()
        assert all(fact in text for fact in (f"<h1>Sweep {name}</h1>", "20.00", "0123456789ab"))
    assert main(["report", "two", "two", "--out", str(tmp_path / "some")]) == 0
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["two"]
    for path in (tmp_path / "some" / "two").iterdir():
        assert path.read_bytes() == (tmp_path / "all" / "two" / path.name).read_bytes()

    assert main(["report", "three"]) == 2
    assert "bare, one, two" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", "one", "--out", str(tmp_path / "file")]) == 2
    assert "--out" in capsys.readouterr().err


def test_empty_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert main(["report", "demo"]) == 2
    assert list(tmp_path.iterdir()) == [], "nothing is written, and looking makes no store"
