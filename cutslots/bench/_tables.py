"""The figures of `cutslots bench solvers` as tables for people."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 118


def show(figures: dict[str, Any]) -> None:
    """Print a table a size, why the other cells are empty, and the headline figures."""
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    about, truth = figures["machine"], figures["truth"]
    load = f"load {about['load_before']:.1f} before, {about['load_after']:.1f} after"
    console.print(
        f"{about['processor']}, {about['threads']} threads, {about['gpu'] or 'no GPU'}; {load}"
    )
    error = max(truth["potentials_error"], truth["gradient_error"])
    at = f"{truth['size']} x {truth['size']}"
    console.print(
        f"Truth: the closed form in float64, {error:.0e} from SciPy's LU of the whole KKT matrix at {at}."
    )
    console.print(
        "Forward, both (with backward): milliseconds, medians. Once: seconds for what is made once, * a factor found on disk.\n"
        "Error: relative, the larger of potentials and gradient. Memory: of a step with its inputs, in units of the weights.\n"
        "In all: with the factor, MB. OSQP solves another problem, forward: the share of cuts that it ends in its own iterations.",
        soft_wrap=True,
    )
    for size in sorted({cell["size"] for cell in figures["cells"]}):
        cells = [cell for cell in figures["cells"] if cell["size"] == size]
        console.print(_table(size, cells))
        for reason in _reasons(cells):
            console.print(f"  {reason}", soft_wrap=True, markup=False)
    console.print(_headline(figures["headline"]))


def _table(size: int, cells: list[dict[str, Any]]) -> Table:
    table = Table(title=f"{size} x {size}", title_justify="left", pad_edge=False)
    for name in ("cuts", "method", "once", "forward", "both", "x dct", "error", "memory", "in all"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for batch in sorted({cell["batch"] for cell in cells}):
        done = sorted(
            (cell for cell in cells if cell["batch"] == batch and cell["status"] == "measured"),
            key=_seconds,
        )
        dct = next((cell for cell in done if cell["method"] == "dct"), None)
        for cell in done:
            equal = "gradient_error" in cell
            compared = "seconds" if equal else "forward_seconds"
            error = (
                f"{max(cell['potentials_error'], cell['gradient_error']):.0e}"
                if equal
                else f"{100 * cell['solved']:.0f} % solved"
            )
            table.add_row(
                str(batch),
                cell["method"],
                f"{cell['setup_seconds']:.3g}{'*' if cell['factor_from_disk'] else ''}",
                _number(1e3 * cell["forward_seconds"]),
                _number(1e3 * cell["seconds"]) if equal else "-",
                _number(cell[compared] / dct[compared]) if dct else "-",
                error,
                _number(cell["step_bytes"] / cell["weights_bytes"])
                if cell["weights_bytes"] > 1e6
                else "-",
                _number(cell["memory_bytes"] / 1e6),
            )
        table.add_section()
    return table


def _reasons(cells: list[dict[str, Any]]) -> Iterable[str]:
    """Why cells are empty: a line a method and status, with the reason of the smallest batch."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        if cell["status"] != "measured":
            grouped.setdefault((cell["method"], cell["status"]), []).append(cell)
    for (method, status), alike in grouped.items():
        batches = ", ".join(str(cell["batch"]) for cell in alike)
        yield f"{method}, {batches} cuts, {status}: {alike[0]['reason']}"


def _headline(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Headline", title_justify="left", pad_edge=False)
    for name in ("what", "median", "fastest", "target", "met"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        value, least, most = row["value"], row["at_least"], row["at_most"]
        fastest = "" if row["fastest"] is None else _number(row["fastest"])
        target = (
            f">= {least:,}" if least is not None else f"<= {most:,}" if most is not None else ""
        )
        met = (
            ""
            if not target or value is None
            else "yes"
            if (value >= least if least is not None else value <= most)
            else "no"
        )
        table.add_row(
            row["what"], "not measured" if value is None else _number(value), fastest, target, met
        )
    return table


def _number(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.1e}"


def _seconds(cell: dict[str, Any]) -> float:
    return cell["seconds"]
