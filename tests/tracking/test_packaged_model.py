"""The model that a run leaves in MLflow."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cutslots.tracking import RunLog, package_model


def test_logged_model_loads_and_predicts(
    home: Path, tmp_path: Path, opened: Callable[..., RunLog], tracked: Callable[[str], None]
) -> None:
    from cutslots.train import config, export

    settings = config.small()
    model = settings.model.build().eval()
    export.save_model(model.state_dict(), settings, tmp_path / "export")
    import mlflow.pyfunc

    start = time.monotonic()
    folder = package_model(tmp_path / "export", tmp_path / "packaged", size=32)
    assert time.monotonic() - start < 1
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {
        "",
        ".json",
        ".safetensors",
        ".txt",
        ".yaml",
    }  # the first is MLmodel; no pickle
    with opened() as log:
        log.artifact(folder, "model")

    tracked(f"sqlite:///{home / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(f"runs:/{log.run_id}/model")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert loaded.predict(images.repeat(2, axis=1).repeat(2, axis=2)).shape == (3, 32, 32)
    masks = loaded.predict(images)
    assert (masks.shape, masks.dtype) == ((3, 32, 32), np.uint8)
    np.testing.assert_array_equal(masks, export.predict(model, images)["masks"])
    with pytest.raises(mlflow.MlflowException, match="schema"):
        loaded.predict(images.astype(np.float32))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        package_model(tmp_path, tmp_path / "nothing", size=32)
