"""One cell a method, size and batch: measured, or the reason why not. No cell is left out."""

import importlib.util
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.status import Status

from cutslots.bench._methods import METHODS, refusal
from cutslots.bench._worker import SLOW_SECONDS, StoppedError, Worker

# Each method is timed in so many turns, so that what else the machine does meets all of them.
TURNS, TURN_SECONDS, CELL_SECONDS = 5, 0.1, 6.0
# The time of smaller batches says little about that of larger ones.
TELLING_BATCH = 16
Cell = dict[str, Any]


class Cells:
    """Measures size after size, and remembers what took how long, to leave out what cannot end in time.

    Args:
        device: for the methods that run on a GPU; the others run on the CPU.
        limit, setup_limit: seconds that a step, and what comes once before all steps, may take.
        memory: bytes that a method may take.

    A cell's `status` is measured; unequal: its result is wrong, so it was not timed; stopped: it went over a limit or failed;
    "not run": it would have; missing: a package is not installed. All but the first have a `reason`.
    """

    def __init__(
        self, device: torch.device, limit: float, setup_limit: float, memory: float
    ) -> None:
        self.device, self.limit, self.setup_limit, self.memory = device, limit, setup_limit, memory
        self.done: list[Cell] = []
        self.console = Console(stderr=True)

    def measure(self, names: list[str], size: int, batches: list[int]) -> None:
        """Every method at one size, its process alive until its last batch is done."""
        cells = [
            {name: self._cell(name, size, batch) for name in names} for batch in sorted(batches)
        ]
        workers = {
            name: Worker(name, size, cell["device"], self.memory)
            for name, cell in cells[0].items()
            if "status" not in cell
        }
        try:
            with self.console.status(f"{size} x {size}") as status:
                for name, worker in workers.items():
                    status.update(f"{size} x {size}: {name} prepares")
                    cells[0][name] |= (setup := _asked(worker, "build", self.setup_limit))
                    for others in cells[1:] if "status" not in setup else []:
                        others[name] |= setup
                for batch in cells:
                    self._batch(batch, workers, status)
        finally:
            for worker in workers.values():
                worker.close()

    def _cell(self, name: str, size: int, batch: int) -> Cell:
        cell = {
            "method": name,
            "size": size,
            "batch": batch,
            "device": str(self.device) if METHODS[name].cuda else "cpu",
        }
        return cell | self._why_not(name, size, batch)

    def _batch(self, cells: dict[str, Cell], workers: dict[str, Worker], status: Status) -> None:
        for name, cell in cells.items():
            status.update(f"{_where(cell)}: {name} is checked")
            # Again: smaller batches have been run since, and tell how long this one would take.
            cell |= {} if "status" in cell else self._why_not(name, cell["size"], cell["batch"])
            if "status" not in cell:
                cell |= _asked(workers[name], "check", self.limit, batch=cell["batch"])
                cell |= {} if "status" in cell else _verdict(cell)
            self.done.append(cell)
        for turn in range(1, TURNS + 1):
            for name, cell in cells.items():
                if cell["status"] == "measured" and _wants_more(cell):
                    status.update(f"{_where(cell)}: {name}, turn {turn} of {TURNS}")
                    answer = _asked(workers[name], "time", self.limit, seconds=TURN_SECONDS)
                    cell["times"] += answer.pop("times", [])
                    cell |= answer
        for cell in cells.values():
            _settle(cell)
        measured = [
            f"{name} {1e3 * cell['seconds']:.3g} ms"
            for name, cell in cells.items()
            if cell["status"] == "measured"
        ]
        self.console.print(
            f"{_where(next(iter(cells.values())))}: {', '.join(measured) or 'nothing'}",
            highlight=False,
            soft_wrap=True,
        )

    def _why_not(self, name: str, size: int, batch: int) -> Cell:
        """Status and reason of a cell that need not be tried; empty otherwise."""
        method, pixels = METHODS[name], size**2
        if missing(name):
            return {"status": "missing", "reason": missing(name)}
        needed = method.bytes(pixels, batch)
        reason = refusal(name, size)
        if not reason and needed > self.memory:
            gigabytes = f"{needed / 1e9:,.{1 if needed < 1e11 else 0}f} GB"
            reason = (
                f"needs about {gigabytes}, more than {self.memory / 1e9:.1f}: {method.why(pixels)}"
            )
        return (
            {"status": "not run", "reason": reason}
            if reason
            else self._from_before(name, size, batch)
        )

    def _from_before(self, name: str, size: int, batch: int) -> Cell:
        """The same from what smaller cells of this method took; the nearest tells most."""
        method = METHODS[name]
        smaller = [
            cell
            for cell in self.done
            if cell["method"] == name and cell["size"] <= size and cell["batch"] <= batch
        ]
        for cell in smaller:
            if cell["status"] in ("stopped", "unequal"):
                return {
                    "status": "not run",
                    "reason": f"{cell['status']} at {_where(cell)} already ({cell['reason']})",
                }
        measured = sorted(
            (cell for cell in smaller if cell["status"] == "measured"),
            key=lambda cell: (cell["size"], cell["batch"]),
        )
        for cell in measured[-1:]:
            growth = (size / cell["size"]) ** (2 * method.growth)
            # A small batch is mostly overhead for what solves all cuts at once.
            more = (
                batch / cell["batch"] if method.one_by_one or cell["batch"] >= TELLING_BATCH else 1
            )
            setup = cell["setup_seconds"] * growth * (not cell["factor_from_disk"])
            for what, seconds, limit in (
                ("preparing", setup, self.setup_limit),
                ("a step", cell["seconds"] * growth * more, self.limit),
            ):
                if seconds > limit:
                    return {
                        "status": "not run",
                        "reason": f"{what} would take about {seconds:,.0f} s, by what {_where(cell)} took",
                    }
        return {}


def missing(name: str) -> str | None:
    """What to install for a method; None when it is there."""
    method = METHODS[name]
    if method.module is None or importlib.util.find_spec(method.module):
        return None
    return f"{method.module} is not installed: {method.install}"


def _asked(worker: Worker, request: str, limit: float, **arguments: float) -> Cell:
    try:
        return worker.ask(request, limit, **arguments)
    except StoppedError as stopped:
        return {
            "status": "stopped",
            "reason": ("preparing: " if request == "build" else "") + str(stopped),
        }


def _verdict(cell: Cell) -> Cell:
    tolerance = METHODS[cell["method"]].tolerance
    wrong = {
        key: value for key, value in cell.items() if key in ("potentials_error", "gradient_error")
    }
    if tolerance is None or all(
        value <= tolerance for value in wrong.values()
    ):  # a NaN is no such value
        return {"status": "measured"}
    return {
        "status": "unequal",
        "reason": f"relative error {max(wrong.values()):.1e} against the closed form in float64",
    }


def _wants_more(cell: Cell) -> bool:
    seconds = [sum(each) for each in cell["times"]]
    return seconds[0] <= SLOW_SECONDS and sum(seconds) < CELL_SECONDS


def _settle(cell: Cell) -> None:
    """Times to medians. The first step counts only where there is no other: it also warms up."""
    times = cell.pop("times", None)
    if times and cell["status"] == "measured":
        times = times[1:] or times
        cell["repeats"] = len(times)
        cell["forward_seconds"] = median(forward for forward, _ in times)
        cell["seconds"] = median(sum(each) for each in times)
        cell["fastest_seconds"] = min(sum(each) for each in times)


def _where(cell: Cell) -> str:
    return f"{cell['size']} x {cell['size']}, {cell['batch']} cuts"
