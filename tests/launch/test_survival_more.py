"""More of what happens to sweeps: failing trials, workers and nodes that die, a tracking server that goes away."""

from collections.abc import Callable

import pytest
from driven import Driven
from traces import stretches

pytestmark = [pytest.mark.slow, pytest.mark.survival]


def failed_alone(driven: Driven, number: int, cause: str) -> None:
    """Trial `number` has failed for `cause` wherever one looks."""
    record, run = driven.records()[number], driven.children()[number]
    assert record["state"] == "failed"
    assert cause in record["cause"]
    assert driven.study()[number].state.name == "FAIL"
    assert cause in driven.study()[number].user_attrs["cause"]
    assert f"failed: {record['cause']}".replace("|", "/") in (driven.folder / "table.md").read_text()
    assert (run.status, run.tags["state"]) == ("FAILED", "failed")
    assert cause in run.tags["cause"]


def test_failing_trials_fail_alone(sweep: Callable[..., Driven]) -> None:
    driven = sweep("faults.py")
    driven.start("--retries", "1")

    run = driven.wait(lambda: driven.labelled("killed"), "the trial that is killed")
    driven.trainer(run).kill()
    driven.wait(lambda: len(stretches(run)) == 2, "its second process")
    driven.trainer(run).kill()
    assert driven.ended() == 0, driven.said()

    assert [each["state"] for each in driven.records()] == ["finished"] + ["failed"] * 4
    assert driven.children()[0].status == driven.parent().status == "FINISHED"
    failed_alone(driven, 1, "the loss or its gradient is not finite at step 2")
    failed_alone(driven, 2, "can't allocate memory")
    failed_alone(driven, 3, "batch")
    failed_alone(driven, 4, "its process died 2 times")
