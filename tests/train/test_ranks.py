"""Two processes that train one model: the numbers of one process, checkpoints for any number of them, and one end for all."""

import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import TINY
from torch import nn
from two_ranks import Recorder, TwoRanks, train

from cutslots import options
from cutslots.data import Batches, prepare, sources
from cutslots.errors import InputError
from cutslots.nn.batch_shard import BatchNorm2d, WholeBatch, current_shard, use_shard
from cutslots.nn.noise import drawn
from cutslots.train import NonFiniteLossError, Ranks, RunConfig, checkpoint, evaluate, fit
from cutslots.train.config import preset

CPU = torch.device("cpu")
RUN = tuple(line for line in TINY if line.startswith(("optim", "train")))
RESNET = ("encoder.kind=resnet", "encoder.stem_channels=8", "encoder.num_layers=2")
CASES = {
    "min_cut_slots": ("small", TINY),
    "resnet": ("small", (*TINY, *RESNET)),
    "slot_attention": (
        "slot-attention-small",
        (
            *RUN,
            "encoder.channels=8",
            "attention.size=8",
            "attention.hidden=16",
            "decoder.channels=8",
        ),
    ),
    "genesis_v2": ("genesis-v2-small", (*RUN, "model.size=8")),
    "min_cut_video": ("small-video", (*TINY, "num_slots=4", "matching.hidden=16", "batch_size=4")),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    started = TwoRanks(tmp_path_factory.mktemp("group") / "two")
    started.call(normalised)  # so that their start is not counted as a test's
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def changed(config: RunConfig, *assignments: str) -> RunConfig:
    for assignment in assignments:
        config = options.override(config, assignment)
    return config


def initial(config: RunConfig) -> dict[str, np.ndarray]:
    """The weights that `fit` starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(config.train.seed)
        return {
            name: value.detach().numpy() for name, value in config.model.build().named_parameters()
        }


def assert_same_bits(first: dict[str, Any], second: dict[str, Any]) -> None:
    for kind in ("parameters", "buffers"):
        for name, value in first[kind].items():
            np.testing.assert_array_equal(second[kind][name], value, err_msg=name)
    np.testing.assert_array_equal(second["random"], first["random"])
    assert second["best"] == first["best"]


def assert_alike(
    one: dict[str, Any], two: dict[str, Any], readings: float = 1e-4, weights: float = 3e-3
) -> None:
    """What differs is the order of float32 sums over a batch, 1e-7 of a gradient, which the steps that follow carry on.

    Adam makes whole steps of gradients that are nothing but rounding (those of biases before a softmax or a normalisation), so
    weights are compared as one vector: the distance between the two ends against the way there.
    """
    for (step, expected), (at, found) in zip(one["values"], two["values"], strict=True):
        assert at == step
        for name in ("loss", "gradient_norm", "learning_rate", "epoch"):
            assert found[name] == pytest.approx(expected[name], rel=readings), (
                f"{name} of step {step}"
            )
    for (_, expected), (_, found) in zip(one["scores"], two["scores"], strict=True):
        assert found.keys() == expected.keys()
        assert found["num_images"] == expected["num_images"]
        assert found["mse"] == pytest.approx(expected["mse"], rel=readings)
    assert two["paths"] == one["paths"]
    apart, way = (
        np.concatenate([(end[name] - origin[name]).ravel() for name in one["parameters"]])
        for end, origin in (
            (two["parameters"], one["parameters"]),
            (one["parameters"], one["initial"]),
        )
    )
    assert np.linalg.norm(apart) < weights * np.linalg.norm(way)
    for name, value in one["buffers"].items():
        np.testing.assert_allclose(
            two["buffers"][name], value, rtol=max(readings, 1e-4), atol=readings, err_msg=name
        )


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(two, name, data_dir, clips_dir, tmp_path):
    base, assignments = CASES[name]
    config = changed(
        preset(base), *assignments, "train.eval_images=100", "learning_rate=1e-3", "warmup_steps=0"
    )
    data = clips_dir if name == "min_cut_video" else data_dir
    one = train(Ranks(), config, data, tmp_path / "one")
    one["initial"] = initial(config)
    first, second = two.call(train, config, data, tmp_path / "two")
    assert_same_bits(first, second)
    for heard in ("start", "scores", "paths", "lines", "values"):
        assert second[heard] == first[heard]
    assert first["examples"] == one["examples"], "of all scenes, whichever rank scored them"
    assert one["examples"]
    assert second["examples"] == []
    assert first["start"].num_ranks == 2
    np.testing.assert_array_equal(first["random"], one["random"])
    if (
        name == "resnet"
    ):  # what is before a normalisation is free in its scale, and its gradient is small beside its rounding
        assert_alike(one, first, readings=2e-3, weights=5e-2)
        return
    assert_alike(one, first)
    assert first["best"]["step"] == one["best"]["step"]
    if (
        name != "genesis_v2"
    ):  # whose slots are nearly even at the start: rounding moves pixels from one to the other
        assert first["scores"] == [
            (step, pytest.approx(scores, rel=1e-4)) for step, scores in one["scores"]
        ]


def normalised(ranks: Ranks) -> list[np.ndarray]:
    """Two training steps of batch normalisation, and one in evaluation, on this rank's share."""
    torch.manual_seed(0)
    layer = BatchNorm2d(3).double()
    nn.init.uniform_(layer.weight)
    found, images = [], torch.empty(0)
    for _ in range(2):
        whole, towards = torch.randn(2, 8, 3, 4, 5, dtype=torch.float64).mul(3).add(1)
        part = slice(8 // ranks.size * ranks.rank, 8 // ranks.size * (ranks.rank + 1))
        images = whole[part].clone().requires_grad_()
        with use_shard(ranks):
            outputs = layer(images)
        (outputs - towards[part]).square().mean().backward()
        # What is minimised is the mean over ranks, so a rank's own gradient counts by its share.
        found += [outputs.detach().numpy(), gradient(images).numpy() / ranks.size]
    gradients = [ranks.mean(gradient(parameter)).numpy() for parameter in layer.parameters()]
    return [
        *found,
        *gradients,
        *(value.numpy() for value in layer.buffers()),
        layer.eval()(images).detach().numpy(),
    ]


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


def test_batch_normalisation_is_over_all_ranks(two):
    one, (first, second) = normalised(Ranks()), two.call(normalised)
    for whole, *parts in zip(one, first, second, strict=True):
        together = np.concatenate(parts) if whole.ndim == 4 else parts[0]
        np.testing.assert_allclose(together, whole, rtol=1e-10, atol=1e-12)


def test_shares_of_random_numbers_are_those_of_the_whole_batch():
    for draw, shape in ((torch.randn, (4, 5)), (torch.rand, ())):
        torch.manual_seed(0)
        whole = drawn(draw, 6, *shape, fresh=True, device=CPU)
        after = torch.get_rng_state()
        for rank in range(3):
            torch.manual_seed(0)
            with use_shard(Ranks(rank, 3)):
                assert torch.equal(
                    drawn(draw, 2, *shape, fresh=True, device=CPU), whole[2 * rank : 2 * rank + 2]
                )
                assert torch.equal(
                    drawn(draw, 2, 1, fresh=False, device=CPU),
                    drawn(draw, 6, 1, fresh=False, device=CPU)[:2],
                )
            assert torch.equal(torch.get_rng_state(), after)
    assert current_shard() == WholeBatch()


def scored(
    ranks: Ranks, config: RunConfig, data: Path, batch_size: int, limit: int | None
) -> tuple[Any, ...]:
    torch.manual_seed(0)
    batches = Batches(
        data,
        "val",
        batch_size,
        rank=ranks.rank,
        world_size=ranks.size,
        shuffle=False,
        drop_last=False,
    )
    scores, sample = evaluate(config.model.build(), batches, CPU, limit, ranks=ranks)
    return (
        scores,
        sample.images.numpy(),
        None if sample.outputs is None else sample.outputs.reconstruction.numpy(),
    )


def test_evaluation_is_shared(two, config, video_config, data_dir, clips_dir):
    """With shares that are empty in the last batch, or everywhere."""
    for made, data, limits in (
        (config, data_dir, (1, 3, 6, None)),
        (video_config, clips_dir, (1, 6, 11, None)),
    ):
        for limit in limits:
            one, images, _ = scored(Ranks(), made, data, 4, limit)
            (first, shown, drawn), (second, others, _) = two.call(scored, made, data, 4, limit)
            assert first == second
            assert first == pytest.approx(one, rel=1e-5)
            assert len(shown) == len(drawn) > 0
            np.testing.assert_array_equal(shown, images[: len(shown)])
            assert limit != 1 or len(others) == 0


@pytest.fixture
def drawing() -> RunConfig:
    """A model that draws random numbers at every step."""
    base, assignments = CASES["slot_attention"]
    return changed(preset(base), *assignments, "learning_rate=1e-3", "warmup_steps=0")


class AtQuestion:
    """Asks a run to stop: says yes to one rank, from its nth question on."""

    def __init__(self, rank: int, question: int) -> None:
        self.rank, self.left = rank, question

    def __call__(self, rank: int) -> bool:
        self.left -= rank == self.rank
        return self.left <= 0


def test_one_and_two_ranks_go_on_from_each_others_checkpoints(two, drawing, data_dir, tmp_path):
    config = drawing
    whole = train(Ranks(), config, data_dir, tmp_path / "whole")
    whole["initial"] = initial(config)
    assert train(Ranks(), config, data_dir, tmp_path / "a", False, AtQuestion(0, 7))["step"] == 7
    assert (
        two.call(train, config, data_dir, tmp_path / "b", False, AtQuestion(0, 3))[0]["step"] == 9
    )
    ends = [
        two.call(train, config, data_dir, tmp_path / "a", True)[0],
        train(Ranks(), config, data_dir, tmp_path / "b", True),
    ]
    assert [end["start"].step for end in ends] == [7, 9]
    for end in ends:
        np.testing.assert_array_equal(end["random"], whole["random"])
        since = end["start"].step
        expected = {
            name: [entry for entry in whole[name] if entry[0] > since]
            for name in ("values", "scores", "paths")
        }
        # The means of the first reading after step 7 lack that step.
        end["values"], expected["values"] = end["values"][-1:], expected["values"][-1:]
        assert_alike({**whole, **expected}, end)


class Wait(Recorder):
    """Stays at a step until it is killed."""

    def __init__(self, step: int, here: Path) -> None:
        super().__init__()
        self.step, self.here = step, here

    def on_log(self, step, values):
        if step == self.step:
            self.here.touch()
            time.sleep(600)


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_as_if_nothing_had_been(two, drawing, data_dir, tmp_path):
    """There are five steps an epoch and a checkpoint every two."""
    config = drawing
    here, killed = tmp_path / "here", TwoRanks(tmp_path / "killed")
    killed.start(train, config, data_dir, tmp_path / "run", False, None, Wait(9, here))
    try:
        for _ in range(600):
            if here.exists():
                break
            time.sleep(0.1)
        assert here.exists()
    finally:
        killed.kill()
    newest = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert newest["step"] == 8
    resumed, _ = two.call(train, config, data_dir, tmp_path / "run", True)
    undisturbed, _ = two.call(train, config, data_dir, tmp_path / "whole")
    assert resumed["start"].step == 8
    assert_same_bits(undisturbed, resumed)


def test_stopped_by_one_rank(two, drawing, data_dir, tmp_path):
    """Steps 3, 6, 9, as metrics are logged there; 9 has no checkpoint of its own and 6 has."""
    config = drawing
    whole, _ = two.call(train, config, data_dir, tmp_path / "whole")
    for rank, question, step in ((1, 3, 9), (0, 2, 6)):
        run = tmp_path / f"{step}"
        first, second = two.call(train, config, data_dir, run, False, AtQuestion(rank, question))
        assert (first["step"], second["step"]) == (step, step)
        assert first["lines"] == [
            f"stopped as asked after step {step} of 12; resuming goes on from there."
        ]
        assert [at for at, _ in first["scores"]] == [6]
        assert [at for at, _, _ in first["paths"]] == sorted({2, 4, 6, step, *range(2, step, 2)})
        resumed, _ = two.call(train, config, data_dir, run, True)
        assert_same_bits(whole, resumed)


def diverging(ranks: Ranks, config: RunConfig, data: Path, run: Path, cause: str) -> dict[str, Any]:
    """Training whose loss alone, or whose gradient alone, is not finite at step 8 on rank 1."""
    model = type(config.model.build())
    real, calls = model.loss, []

    def loss(outputs: Any, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        value = real(outputs, images)
        if len(calls) != 8 or ranks.is_first:
            return value
        return (
            value + float("inf")
            if cause == "loss"
            else (value - value.detach()).sqrt() + value.detach()
        )

    model.loss = staticmethod(loss)
    try:
        return train(ranks, config, data, run)
    finally:
        model.loss = staticmethod(real)


@pytest.mark.parametrize("cause", ["loss", "gradient"])
def test_a_non_finite_loss_of_one_rank_ends_all(two, config, data_dir, tmp_path, cause):
    error = two.fail(diverging, config, data_dir, tmp_path / "run", cause)
    assert isinstance(error, NonFiniteLossError)
    assert "not finite at step 8." in str(error)
    assert "step-00000006.pt" in str(error)
    batches = Batches(data_dir, "train", 8)
    assert f"batch: {', '.join(batches.ids(batches.batch(1, 2).index))}. Last" in str(error)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1].name == "step-00000006.pt"


class Fill(Recorder):
    """The file-size limit of a process stands in for a disk that fills up while a checkpoint is written."""

    def on_save(self, step, path, best):
        if step == 4 and self.rank == 0:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (path.stat().st_size // 2, resource.RLIM_INFINITY)
            )


def train_and_fill(ranks: Ranks, *arguments: Any) -> dict[str, Any]:
    try:
        return train(ranks, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class NoFigure(Recorder):
    def on_evaluate(self, step, scores, sample):
        if self.rank == 0:
            raise OSError("no room for a figure")


def train_on_own_data(
    ranks: Ranks, config: RunConfig, folders: tuple[Path, ...], run: Path
) -> dict[str, Any]:
    return train(ranks, config, folders[ranks.rank], run)


def test_what_one_rank_refuses_ends_all(two, config, data_dir, clips_dir, tmp_path):
    run = tmp_path / "run"
    fit(config, data_dir, run, device="cpu")

    def refused(message: str, *arguments: Any, by: Any = train) -> None:
        with pytest.raises(InputError, match=message):
            raise two.fail(by, *arguments)

    refused("already holds this run, at step 12", config, data_dir, run)
    refused(
        r"model.cut.gamma was 0.5, now 0.3", changed(config, "cut.gamma=0.3"), data_dir, run, True
    )
    refused(
        r"is already at step 12; train.steps is 8",
        changed(config, "train.steps=8"),
        data_dir,
        run,
        True,
    )
    new = tmp_path / "new"
    refused(
        r"batch_size 7 .* does not divide by world_size 2",
        changed(config, "batch_size=7"),
        data_dir,
        new,
    )
    prepare(
        "scenes",
        None,
        tmp_path / "other",
        sources.load("scenes").Options(count=50, size=32, seed=9),
    )
    refused(
        "rank 1 was given another configuration or other data",
        config,
        (data_dir, tmp_path / "other"),
        new,
        by=train_on_own_data,
    )
    refused(
        "nothing does not exist",
        config,
        (data_dir, tmp_path / "nothing"),
        new,
        by=train_on_own_data,
    )
    prepare("scenes", None, tmp_path / "few", sources.load("scenes").Options(count=10, size=32))
    refused(
        "split 'val' has 1 scenes for 2 ranks",
        changed(config, "batch_size=2"),
        tmp_path / "few",
        new,
    )
    assert not new.exists()
    full = r"step-00000006.pt cannot be written \(File too large\)"
    refused(full, config, data_dir, tmp_path / "full", False, None, Fill(), by=train_and_fill)
    assert checkpoint.steps(tmp_path / "full" / "checkpoints")[-1].name == "step-00000004.pt"
    error = two.fail(train, config, data_dir, tmp_path / "figure", False, None, NoFigure())
    assert isinstance(error, OSError)
    assert "no room for a figure" in str(error)


class NotPickled(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


def spoken(ranks: Ranks) -> dict[str, Any]:
    mine = float(ranks.rank + 1)
    found: dict[str, Any] = {
        "mean": ranks.mean(torch.tensor([mine, 10 * mine])).tolist(),
        "sum": ranks.sum({"a": mine, "b": 1.0} if ranks.is_first else {"b": mine}),
        "any": (ranks.any(False), ranks.any(ranks.rank == 1), ranks.any(True)),
        "first": ranks.from_first(lambda: {"weights": torch.full((2,), mine)})["weights"].tolist(),
    }
    for name, raising in (
        ("one", {1: KeyError("one")}),
        ("both", {0: OSError(5, "zero"), 1: KeyError("one")}),
    ):
        found[name] = repr(told(ranks, raising.get(ranks.rank)))
    found["not pickled"] = repr(told(ranks, None if ranks.is_first else NotPickled(1, 2)))
    return found


def told(ranks: Ranks, error: Exception | None) -> Exception | None:
    """What a rank raises that has met `error`."""
    try:
        with ranks.agreed():
            if error is not None:
                raise error
    except Exception as caught:
        return caught
    return None


def test_what_ranks_tell_each_other(two):
    ends = "RuntimeError('rank 1 ended with NotPickled: 3')", "NotPickled(3)"
    for found, end in zip(two.call(spoken), ends, strict=True):
        assert found == {
            "mean": [1.5, 15],
            "sum": {"a": 1, "b": 3},
            "any": (False, True, True),
            "first": [1, 1],
            "one": "KeyError('one')",
            "both": "OSError(5, 'zero')",
            "not pickled": end,
        }


def test_one_rank_says_nothing():
    alone, tensor = Ranks.joined(), torch.ones(2)
    assert alone == Ranks(0, 1)
    assert alone.is_first
    assert alone.mean(tensor) is tensor
    assert alone.sum({"a": 2.0}) == {"a": 2}
    assert (alone.any(False), alone.any(True)) == (False, True)
    assert alone.from_first(lambda: 3) == 3
    with pytest.raises(KeyError), alone.agreed():
        raise KeyError
    layer = nn.Linear(1, 1)
    assert alone.synchronised(layer, CPU) is layer


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
        np.testing.assert_array_equal(second["parameters"][name], value, err_msg=name)
    for (_, expected), (_, found) in zip(one["values"], first["values"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
