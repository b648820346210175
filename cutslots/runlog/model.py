"""A trained model as a folder that MLflow loads and serves."""

import re
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

REQUIREMENTS = ("cutslots", "mlflow", "numpy", "safetensors", "scipy", "torch")


def package_model(export_dir: Path, out_dir: Path, size: int) -> Path:
    """Write an MLflow model folder around an exported model; after `log.artifact(out_dir, "model")`,
    `mlflow.pyfunc.load_model("runs:/<run id>/model")` loads it.

    It holds JSON, safetensors and YAML, nothing pickled; loading it runs the installed cutslots and no code from the
    folder.

    Args:
        export_dir: folder with `config.json` and `weights.safetensors`.
        out_dir: the folder to write; must not exist or be empty.
        size: side of the model's label maps, in pixels. The images' own side is left open: the model takes whole multiples of it.

    Raises:
        FileNotFoundError: the export is not complete.
    """
    missing = [
        name
        for name in ("config.json", "weights.safetensors")
        if not (Path(export_dir) / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{export_dir} is not an exported model: it has no {' and no '.join(missing)}"
        )
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    images = TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))
    masks = TensorSpec(np.dtype(np.uint8), (-1, size, size))
    with warnings.catch_warnings():
        # An example would be run through the model, in the training's last minute, for what the signature says already.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        mlflow.pyfunc.save_model(
            str(out_dir),
            loader_module="cutslots.runlog",
            data_path=str(export_dir),
            signature=ModelSignature(inputs=Schema([images]), outputs=Schema([masks])),
            # Without a list MLflow loads the model in a fresh process to find out what it imports: 5-12 s.
            pip_requirements=[
                f"{name}=={re.sub(r'[+].*', '', version(name))}" for name in REQUIREMENTS
            ],
        )
    return Path(out_dir)


class _Segmenter:
    """What `mlflow.pyfunc` calls: images in, label maps out."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> np.ndarray:
        """Label maps (N, H, W) uint8 of images (N, H, W, 3) uint8."""
        from cutslots.train.export import predict

        return predict(self.model, np.asarray(data))["masks"]


def _load_pyfunc(path: str) -> _Segmenter:
    from cutslots.train.export import load_model

    return _Segmenter(load_model(Path(path)))
