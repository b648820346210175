"""`cutslots baselines` with a real tracking store."""

import json
from typing import Any

import pytest

from cutslots.cli import main
from cutslots.files import home
from cutslots.report.published import records, rows
from cutslots.tracking import Record, find_runs, import_records

DTI = "tags.method = 'DTI' and tags.dataset = 'clevrtex'"


@pytest.fixture
def client(copy_database) -> Any:
    """A client of an empty tracking store."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{copy_database(home()) / 'mlflow.db'}")


def test_importing_twice_changes_nothing(client, capsys):
    assert main(["baselines", "import"]) == 0
    count = len(records())
    assert f"{count} runs added, 0 changed, 0 unchanged" in capsys.readouterr().out
    before = find_runs("tags.published = 'true'")
    assert len(before) == count
    assert main(["baselines", "import"]) == 0
    assert f"0 runs added, 0 changed, {count} unchanged" in capsys.readouterr().out
    assert find_runs("tags.published = 'true'") == before

    (run,) = find_runs(DTI)
    experiment_id = client.get_run(run.run_id).info.experiment_id
    assert client.get_experiment(experiment_id).name == "published"
    assert run.status == "FINISHED"
    assert run.metrics["clevrtex_outd/test/ari_fg"] == 0.7367
    assert run.tags["source"] == 'Pervez et al. 2023, Table 1, row "DTI"'
    assert len(client.get_metric_history(run.run_id, "clevrtex_outd/test/ari_fg")) == 1
    # MLflow's search finds published results with ours.
    metric = 'metrics."clevrtex_camo/test/ari_fg"'
    methods = [run.tags["method"] for run in find_runs(f"{metric} > 0.7", [f"{metric} DESC"])]
    assert methods == ["Large AKOrN", "min-cut slots (the paper)", "DTI"]


def test_corrected_result_replaces_the_old(client):
    old = Record("key", "a method's", {"source": "a table"}, {"x": 1.0, "y": 2.0})
    import_records("published", [old])
    corrected = Record("key", "a method's", {"source": "its erratum"}, {"x": 0.5, "y": 2.0})
    for _ in range(2):
        import_records("published", [corrected])
        (run,) = find_runs()
        assert (run.tags["source"], run.metrics) == ("its erratum", {"x": 0.5, "y": 2.0})
    client.delete_run(find_runs()[0].run_id)
    import_records("published", [corrected])
    assert len(find_runs()) == 1, "a deleted run is added again"


def test_experiments(client, monkeypatch, capsys):
    assert main(["baselines", "import", "--experiment", "peers"]) == 0
    assert client.get_experiment_by_name("peers")
    assert main(["baselines", "import", "--experiment", " "]) == 2
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["baselines", "import"]) == 2
    assert "unreachable" in capsys.readouterr().err


def test_list(capsys):
    assert main(["baselines", "list", "--dataset", "clevrtex_camo"]) == 0
    printed = capsys.readouterr().out
    for fact in ("Large AKOrN", "ari_fg 0.77 +- 0.005", "MBO in place of mIoU"):
        assert fact in printed
    assert main(["baselines", "list", "--dataset", "cora", "--json"]) == 0
    methods = [row["method"] for row in json.loads(capsys.readouterr().out)]
    assert methods == [row.method for row in rows("cora")]
    assert main(["baselines", "list", "--dataset", "clevrtex_canvas"]) == 2
    assert "clevrtex_camo" in capsys.readouterr().err
