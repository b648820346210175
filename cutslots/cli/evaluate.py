"""score a trained model on a split"""

import argparse
import json
from pathlib import Path

from cutslots.cli._counting import Counting
from cutslots.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, on what, and what to write."""
    parser.add_argument(
        "model",
        metavar="RUN_OR_CHECKPOINT",
        help="a run's name or folder (its best checkpoint), a checkpoint, or an MLflow run id",
    )
    parser.add_argument("--data", metavar="DIR", required=True, help="a prepared dataset")
    parser.add_argument("--split", default="test", help="which split (default test)")
    parser.add_argument("--images", type=int, help="at most this many images")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", help="cpu, cuda, ...; default the first GPU, else the CPU")
    parser.add_argument("--figure", metavar="PNG", help="draw images with their masks to this file")
    parser.add_argument("--json", metavar="FILE", help="write the scores to this file")


def run(chosen: argparse.Namespace) -> None:
    """Print the scores, write what was asked for, and log them to the run they belong to."""
    from cutslots.data import Batches
    from cutslots.launch.local import find_model, log_scores
    from cutslots.report.figures import sample_figure
    from cutslots.runlog import git_commit
    from cutslots.train import evaluate, load_model
    from cutslots.train.evaluate import pick_device
    from cutslots.train.export import provenance

    device = pick_device(chosen.device)
    path = find_model(chosen.model)
    model = load_model(path, device)
    batches = Batches(chosen.data, chosen.split, chosen.batch_size, shuffle=False, drop_last=False)
    with Counting("images") as progress:
        limit = min(batches.num_scenes, chosen.images or batches.num_scenes)
        scores, sample = evaluate(model, batches, device, chosen.images, lambda done: progress(chosen.split, done, limit))
    found = {
        "model": chosen.model,
        **provenance(path),
        "commit": git_commit(Path(__file__).parent),
        "source": batches.manifest.source,
        "digest": batches.manifest.digest,
        "split": chosen.split,
        "scores": scores,
    }
    side = sample.images.shape[-1]
    print(f"{path} on {batches.manifest.source} {chosen.split}, {scores['num_images']:.0f} images of {side} x {side}")
    print(f"{'':<14}{'ARI-FG':>9}{'ARI':>9}{'mIoU':>9}{'MSE':>11}")
    print(f"{'alpha masks':<14}{scores['ari_fg']:>9.4f}{scores['ari']:>9.4f}{scores['miou']:>9.4f}{scores['mse']:>11.2f}")
    if "cut_ari_fg" in scores:
        print(f"{'cut masks':<14}{scores['cut_ari_fg']:>9.4f}{scores['cut_ari']:>9.4f}{scores['cut_miou']:>9.4f}")
    if chosen.json:
        write_text(Path(chosen.json), json.dumps(found, indent=2) + "\n")
    if chosen.figure:
        sample_figure(sample, Path(chosen.figure))
    log_scores(path, batches.manifest.source, chosen.split, scores, partial=scores["num_images"] < batches.num_scenes)
