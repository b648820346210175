"""Two processes that train one model: the numbers of one process, and the same end for both."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import RUN, TINY, TINY_VIDEO, Recorder, changed
from torch import nn
from two_ranks import TwoRanks, train

from cutslots.data import Batches, prepare, sources
from cutslots.errors import InputError
from cutslots.nn.batch_shard import BatchNorm2d, use_shard
from cutslots.nn.noise import drawn
from cutslots.train import NonFiniteLossError, Ranks, RunConfig, checkpoint, evaluate, fit
from cutslots.train.config import preset

CPU = torch.device("cpu")
RESNET = ("encoder.kind=resnet", "encoder.stem_channels=8", "encoder.num_layers=2")
SLOT_ATTENTION = ("encoder.channels=8", "attention.size=8", "attention.hidden=16", *RUN)
CASES = {
    "min_cut_slots": ("small", TINY),
    "resnet": ("small", (*TINY, *RESNET)),
    "slot_attention": ("slot-attention-small", (*SLOT_ATTENTION, "decoder.channels=8")),
    "genesis_v2": ("genesis-v2-small", (*RUN, "model.size=8")),
    "min_cut_video": ("small-video", TINY_VIDEO),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    started = TwoRanks(tmp_path_factory.mktemp("group") / "two")
    started.call(batch_norm_steps)  # so that no test is charged for their start
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def case(name: str) -> RunConfig:
    base, changes = CASES[name]
    return changed(preset(base), *changes, "learning_rate=1e-3", "warmup_steps=0")


def initial(config: RunConfig) -> dict[str, torch.Tensor]:
    """The weights from which `fit` starts."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        return {name: value.detach() for name, value in config.model.build().named_parameters()}


def assert_same_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    for kind in ("parameters", "buffers"):
        for name, value in first[kind].items():
            assert torch.equal(second[kind][name], value), name
    assert torch.equal(second["random"], first["random"])
    assert second["best"] == first["best"]


def assert_alike(one: dict, two: dict, readings: float = 1e-4, weights: float = 3e-3) -> None:
    """Equal except for the order of float32 sums over a batch, which later steps amplify.

    Adam takes full steps along gradients that are only rounding, such as those of biases before a
    softmax, so weights are compared as one vector: their distance against the way they went.
    """
    assert [step for step, _ in two["values"]] == [step for step, _ in one["values"]]
    for (_, expected), (_, values) in zip(one["values"], two["values"], strict=True):
        for name in ("loss", "gradient_norm", "learning_rate", "epoch"):
            assert values[name] == pytest.approx(expected[name], rel=readings), name
    for (_, expected), (_, scores) in zip(one["scores"], two["scores"], strict=True):
        assert scores.keys() == expected.keys()
        assert scores["num_images"] == expected["num_images"]
        assert scores["mse"] == pytest.approx(expected["mse"], rel=readings)
    assert two["paths"] == one["paths"]
    start, end, other = (
        torch.cat([tensor.flatten() for tensor in parameters.values()])
        for parameters in (one["initial"], one["parameters"], two["parameters"])
    )
    assert (other - end).norm() < weights * (end - start).norm()
    for name, value in one["buffers"].items():
        torch.testing.assert_close(
            two["buffers"][name], value, rtol=max(readings, 1e-4), atol=readings
        )


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(two, name, data_dir, clips_dir, tmp_path):
    config = changed(case(name), "train.eval_images=100")
    data = clips_dir if name == "min_cut_video" else data_dir
    one = {**train(Ranks(), config, data, tmp_path / "one"), "initial": initial(config)}
    first, second = two.call(train, config, data, tmp_path / "two")
    assert_same_bits(first, second)
    for calls in ("start", "scores", "paths", "lines", "values"):
        assert second[calls] == first[calls]
    assert first["start"].num_ranks == 2
    assert one["examples"]
    assert (first["examples"], second["examples"]) == (one["examples"], [])
    assert torch.equal(first["random"], one["random"])
    if name == "resnet":
        # The scale before a normalization is free: its gradient is small beside its rounding.
        assert_alike(one, first, readings=2e-3, weights=5e-2)
        return
    assert_alike(one, first)
    assert first["best"]["step"] == one["best"]["step"]
    if name != "genesis_v2":
        # Its slots are nearly even at the start: rounding moves pixels between them.
        assert first["scores"] == [
            (step, pytest.approx(scores, rel=1e-4)) for step, scores in one["scores"]
        ]


def batch_norm_steps(ranks: Ranks) -> list[np.ndarray]:
    """Two training steps of batch normalization, and an evaluation, on this rank's part."""
    torch.manual_seed(0)
    layer, arrays, images = BatchNorm2d(3).double(), [], torch.empty(0)
    nn.init.uniform_(layer.weight)
    for _ in range(2):
        whole, target = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64).mul(3).add(1)
        part = slice(8 // ranks.size * ranks.rank, 8 // ranks.size * (ranks.rank + 1))
        images = whole[part].clone().requires_grad_()
        with use_shard(ranks):
            outputs = layer(images)
        (outputs - target[part]).square().mean().backward()
        assert images.grad is not None
        # The mean over ranks is minimized, so a rank's gradient counts by its share.
        arrays += [outputs.detach().numpy(), images.grad.numpy() / ranks.size]
    gradients = [parameter.grad for parameter in layer.parameters()]
    arrays += [ranks.mean(gradient).numpy() for gradient in gradients if gradient is not None]
    arrays += [value.numpy() for value in layer.buffers()]
    return [*arrays, layer.eval()(images).detach().numpy()]


def test_batch_norm_is_over_all_ranks(two):
    one, (first, second) = batch_norm_steps(Ranks()), two.call(batch_norm_steps)
    for whole, *parts in zip(one, first, second, strict=True):
        joined = np.concatenate(parts) if whole.ndim == 4 else parts[0]
        np.testing.assert_allclose(joined, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("draw", "shape"), [(torch.randn, (4, 5)), (torch.rand, ())])
def test_ranks_draw_parts_of_the_same_random_numbers(draw, shape):
    torch.manual_seed(0)
    whole, after = drawn(draw, 6, *shape, fresh=True, device=CPU), torch.get_rng_state()
    for rank in range(3):
        torch.manual_seed(0)
        with use_shard(Ranks(rank, 3)):
            part = drawn(draw, 2, *shape, fresh=True, device=CPU)
            fixed = drawn(draw, 2, 1, fresh=False, device=CPU)
        assert torch.equal(part, whole[2 * rank : 2 * rank + 2])
        assert torch.equal(fixed, drawn(draw, 6, 1, fresh=False, device=CPU)[:2])
        assert torch.equal(torch.get_rng_state(), after)


def scores_and_sample(ranks: Ranks, config: RunConfig, data: Path, limit: int | None) -> Any:
    torch.manual_seed(0)
    part = {"rank": ranks.rank, "world_size": ranks.size}
    batches = Batches(data, "val", 4, **part, shuffle=False, drop_last=False)
    scores, sample = evaluate(config.model.build(), batches, CPU, limit, ranks=ranks)
    return scores, sample.images


@pytest.mark.parametrize("limit", [1, 6, 11, None])
def test_evaluation_is_divided(two, any_config, data_dir, clips_dir, limit):
    """Also where a rank's part is empty in the last batch, or everywhere."""
    data = clips_dir if hasattr(any_config.model, "matching") else data_dir
    one, images = scores_and_sample(Ranks(), any_config, data, limit)
    (first, shown), (second, others) = two.call(scores_and_sample, any_config, data, limit)
    assert first == second
    assert first == pytest.approx(one, rel=1e-5)
    assert len(shown) > 0
    assert torch.equal(shown, images[: len(shown)])
    assert limit != 1 or len(others) == 0


class StopAt:
    """Stops a run at the nth question to one rank."""

    def __init__(self, rank: int, question: int) -> None:
        self.rank, self.left = rank, question

    def __call__(self, rank: int) -> bool:
        self.left -= rank == self.rank
        return self.left <= 0


def test_another_number_of_ranks_resumes(two, data_dir, tmp_path):
    config = case("slot_attention")  # it draws random numbers at every step
    whole = {**train(Ranks(), config, data_dir, tmp_path / "0"), "initial": initial(config)}
    train(Ranks(), config, data_dir, tmp_path / "1", False, StopAt(0, 7))
    two.call(train, config, data_dir, tmp_path / "2", False, StopAt(0, 3))
    ends = [
        two.call(train, config, data_dir, tmp_path / "1", True)[0],
        train(Ranks(), config, data_dir, tmp_path / "2", True),
    ]
    assert [end["start"].step for end in ends] == [7, 9]
    for end in ends:
        assert torch.equal(end["random"], whole["random"])
        expected = {
            name: [entry for entry in whole[name] if entry[0] > end["start"].step]
            for name in ("values", "scores", "paths")
        }
        # The first means after step 7 lack that step.
        end["values"], expected["values"] = end["values"][-1:], expected["values"][-1:]
        assert_alike({**whole, **expected}, end)


class Wait(Recorder):
    """Waits at step 9 until it is killed."""

    def __init__(self, reached: Path) -> None:
        super().__init__()
        self.reached = reached

    def on_log(self, step, values):
        if step == 9:
            self.reached.touch()
            time.sleep(600)


@pytest.mark.slow
def test_resume_after_sigkill_is_bit_exact(two, data_dir, tmp_path):
    """Killed in mid-epoch: five steps per epoch and a checkpoint every two."""
    config, reached, killed = case("slot_attention"), tmp_path / "here", TwoRanks(tmp_path / "k")
    killed.start(train, config, data_dir, tmp_path / "run", False, None, Wait(reached))
    try:
        deadline = time.monotonic() + 60
        while not reached.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert reached.exists()
    finally:
        killed.kill()
    resumed, _ = two.call(train, config, data_dir, tmp_path / "run", True)
    undisturbed, _ = two.call(train, config, data_dir, tmp_path / "whole")
    assert resumed["start"].step == 8
    assert_same_bits(undisturbed, resumed)


def test_one_rank_stops_all(two, data_dir, tmp_path):
    """At steps 3, 6, 9, as metrics are logged there; of these only 6 has a checkpoint anyway."""
    config = case("slot_attention")
    whole, _ = two.call(train, config, data_dir, tmp_path / "whole")
    for rank, question, step in ((1, 3, 9), (0, 2, 6)):
        run = tmp_path / f"{step}"
        first, second = two.call(train, config, data_dir, run, False, StopAt(rank, question))
        assert (first["step"], second["step"]) == (step, step)
        assert [at for at, _ in first["scores"]] == [6]
        assert [at for at, _, _ in first["paths"]] == sorted({2, 4, 6, step, *range(2, step, 2)})
        resumed, _ = two.call(train, config, data_dir, run, True)
        assert_same_bits(whole, resumed)


def diverging(ranks: Ranks, config: RunConfig, data: Path, run: Path) -> dict[str, Any]:
    """Training whose loss is not finite at step 8 on rank 1."""
    model = type(config.model.build())
    real, calls = model.loss, []

    def loss(self: Any, outputs: Any, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        infinite = len(calls) == 8 and not ranks.is_first
        return real(self, outputs, images) + (float("inf") if infinite else 0)

    model.loss = loss
    try:
        return train(ranks, config, data, run)
    finally:
        model.loss = real


def test_non_finite_loss_of_one_rank_ends_all(two, config, data_dir, tmp_path):
    error = two.fail(diverging, config, data_dir, tmp_path / "run")
    assert isinstance(error, NonFiniteLossError)
    batches = Batches(data_dir, "train", 8)
    ids = ", ".join(batches.ids(batches.batch(1, 2).index))  # of both ranks
    for part in ("at step 8.", "step-00000006.pt", ids):
        assert part in str(error)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1].name == "step-00000006.pt"


class Fill(Recorder):
    """A limit on the size of files simulates a full disk on rank 0 after step 4."""

    def on_save(self, step, path, best):
        if step == 4 and self.rank == 0:
            limit = path.stat().st_size // 2, resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)


class NoFigure(Recorder):
    def on_evaluate(self, step, scores, sample):
        if self.rank == 0:
            raise OSError("no room for a figure")


def train_each(ranks: Ranks, config: RunConfig, folders: list[Path], *rest: Any) -> dict[str, Any]:
    """`train` with separate data, without a limit on files afterwards."""
    try:
        return train(ranks, config, folders[ranks.rank], *rest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def test_error_of_one_rank_ends_all(two, config, data_dir, other_data_dir, tmp_path):
    run, new, few = tmp_path / "run", tmp_path / "new", tmp_path / "few"
    fit(config, data_dir, run, device="cpu")
    prepare("scenes", None, few, sources.load("scenes").Options(count=10, size=32))
    both = [data_dir, data_dir]
    for message, changes, data, *rest in (
        ("already holds this run, at step 12", [], both, run),
        (r"model.cut.gamma was 0.5, now 0.3", ["cut.gamma=0.3"], both, run, True),
        (r"train.steps must be at least 12, .* got 8", ["train.steps=8"], both, run, True),
        (r"batch_size.* 7", ["batch_size=7"], both, new),
        ("same configuration and the same data", [], [data_dir, other_data_dir], new),
        ("nothing", [], [data_dir, tmp_path / "nothing"], new),
        ("split 'val' .* got 1 for 2 ranks", ["batch_size=2"], [few, few], new),
        ("step-00000006.pt cannot be written", [], both, tmp_path / "full", False, None, Fill()),
        ("no room for a figure", [], both, tmp_path / "figure", False, None, NoFigure()),
    ):
        with pytest.raises((InputError, OSError), match=message):
            raise two.fail(train_each, changed(config, *changes), data, *rest)
    assert not new.exists()
    assert checkpoint.steps(tmp_path / "full" / "checkpoints")[-1].name == "step-00000004.pt"


class NotPickled(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def agree(ranks: Ranks, error: Exception | None) -> str | None:
    """The exception that a rank raises if `error` is its own."""
    try:
        with ranks.agreed():
            if error is not None:
                raise error
    except Exception as raised:
        return repr(raised)
    return None


def exchange(ranks: Ranks) -> dict[str, Any]:
    own = float(ranks.rank + 1)
    both = {0: OSError(5, "zero"), 1: KeyError("one")}
    return {
        "mean": ranks.mean(torch.tensor([own, 10 * own])).tolist(),
        "sum": ranks.sum({"a": own, "b": 1.0} if ranks.is_first else {"b": own}),
        "any": [ranks.any(False), ranks.any(ranks.rank == 1), ranks.any(True)],
        "first": ranks.from_first(own),
        "one": agree(ranks, None if ranks.is_first else KeyError("one")),
        "both": agree(ranks, both.get(ranks.rank)),
        "not pickled": agree(ranks, None if ranks.is_first else NotPickled(1, 2)),
    }


def test_ranks_exchange_values_and_errors(two):
    one = exchange(Ranks())
    assert Ranks.joined() == Ranks(0, 1)
    assert (one["mean"], one["sum"], one["first"]) == ([1, 10], {"a": 1, "b": 1}, 1)
    ends = "RuntimeError('rank 1 raised NotPickled: 3')", "NotPickled(3)"
    for values, end in zip(two.call(exchange), ends, strict=True):
        assert values == {
            "mean": [1.5, 15],
            "sum": {"a": 1, "b": 3},
            "any": [False, True, True],
            "first": 1,
            "one": "KeyError('one')",
            "both": "OSError(5, 'zero')",
            "not pickled": end,
        }


def test_two_ranks_that_need_the_same_factor_make_one(two, config, data_dir, tmp_path):
    config = changed(config, "cut.solver=vertex", "cut.gamma_edge=0.37", "train.steps=3")
    first, second = two.call(train, config, data_dir, tmp_path / "vertex")
    assert_same_bits(first, second)
    closed = train(Ranks(), changed(config, "cut.solver=dct"), data_dir, tmp_path / "dct")
    assert first["values"][0][1]["loss"] == pytest.approx(closed["values"][0][1]["loss"], rel=1e-4)


@pytest.mark.gpu
def test_two_ranks_on_one_gpu(two, config, data_dir, tmp_path):
    config = changed(config, "train.precision=float32")
    one = train(Ranks(), config, data_dir, tmp_path / "one", device="cuda")
    first, second = two.call(train, config, data_dir, tmp_path / "two", False, None, None, "cuda:0")
    for name, value in first["parameters"].items():
        assert torch.equal(second["parameters"][name], value), name
    for (_, expected), (_, values) in zip(one["values"], first["values"], strict=True):
        assert values["loss"] == pytest.approx(expected["loss"], rel=1e-3)
