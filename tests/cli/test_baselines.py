"""`cutslots baselines` with a real tracking store."""

import json

import pytest

from cutslots.cli import main
from cutslots.report.published import records, rows
from cutslots.tracking import Record, find_runs, import_records


def everything() -> dict[str, tuple]:
    found = find_runs("tags.published = 'true'")
    return {
        run.run_id: (run.name, run.tags, run.metrics, run.started, run.ended, run.status)
        for run in found
    }


def test_importing_twice_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from mlflow import MlflowClient

    from cutslots.tracking import default_uri

    assert main(["baselines", "import"]) == 0
    count = len(records())
    assert f"{count} runs added, 0 changed, 0 unchanged" in capsys.readouterr().out
    before = everything()
    assert len(before) == count
    assert main(["baselines", "import"]) == 0
    assert f"0 runs added, 0 changed, {count} unchanged" in capsys.readouterr().out
    assert everything() == before

    client = MlflowClient(default_uri())
    experiment = client.get_experiment_by_name("published")
    assert experiment is not None
    (found,) = find_runs("tags.method = 'DTI' and tags.dataset = 'clevrtex'")
    assert client.get_run(found.run_id).info.experiment_id == experiment.experiment_id
    assert found.status == "FINISHED"
    assert found.metrics["clevrtex_outd/test/ari_fg"] == 0.7367
    assert found.tags["source"] == 'Pervez et al. 2023, Table 1, row "DTI"'
    assert len(client.get_metric_history(found.run_id, "clevrtex_outd/test/ari_fg")) == 1
    # MLflow's search finds published results with ours.
    best = find_runs(
        'metrics."clevrtex_camo/test/ari_fg" > 0.7', ['metrics."clevrtex_camo/test/ari_fg" DESC']
    )
    assert [run.tags["method"] for run in best] == [
        "Large AKOrN",
        "min-cut slots (the paper)",
        "DTI",
    ]


def test_corrected_result_replaces_the_old() -> None:
    from mlflow import MlflowClient

    from cutslots.tracking import default_uri

    old = Record("key", "a method's", {"source": "a table"}, {"x": 1.0, "y": 2.0})
    assert import_records("published", [old]) == {"added": 1}
    corrected = Record("key", "a method's", {"source": "its erratum"}, {"x": 0.5, "y": 2.0})
    assert import_records("published", [corrected]) == {"changed": 1}
    assert import_records("published", [corrected]) == {"unchanged": 1}
    (run,) = find_runs("tags.source = 'its erratum'")
    assert run.metrics == {"x": 0.5, "y": 2.0}
    # A deleted run is added again.
    MlflowClient(default_uri()).delete_run(run.run_id)
    assert import_records("published", [corrected]) == {"added": 1}


def test_another_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", "import", "--experiment", "peers"]) == 0
    assert "experiment 'peers'" in capsys.readouterr().out
    assert main(["baselines", "import", "--experiment", " "]) == 2


def test_unreachable_store(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["baselines", "import"]) == 2
    assert "unreachable" in capsys.readouterr().err


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["baselines", "list", "--dataset", "clevrtex_camo"]) == 0
    printed = capsys.readouterr().out
    assert "Large AKOrN" in printed
    assert "ari_fg 0.77 +- 0.005" in printed
    assert "MBO in place of mIoU" in printed
    assert main(["baselines", "list", "--dataset", "cora", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in found] == [row.method for row in rows("cora")]
    assert main(["baselines", "list", "--dataset", "clevrtex_canvas"]) == 2
    assert "clevrtex_camo" in capsys.readouterr().err
