"""A sweep's report as one page that opens from disk: no server, nothing from elsewhere, pictures as files beside it."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape

from cutslots.report.importance import Analysis
from cutslots.report.sweep import IMPORTANCE, SweepRuns, Table, summary, tables

_STYLE = """
:root { color-scheme: light dark;
  --text: #1c2126; --dim: #5b6570; --line: #d9dee3; --ground: #fff; --row: #f5f7f9; --mark: #b34700; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e7eb; --dim: #98a3ae; --line: #363d45; --ground: #15191d; --row: #1d2329; --mark: #ff9a4d; }
}
body { margin: 0 auto; max-width: 78rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
p, ul, figcaption { max-width: 60rem; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
nav, .notes, figcaption { color: var(--dim); font-size: .875rem; }
a { color: inherit; }
/* Covers that scroll along lie above shadows that do not: what goes on beyond an edge shows. */
.wide { overflow-x: auto; background:
  linear-gradient(90deg, var(--ground) 50%, transparent) local 0 / 3rem 100% no-repeat,
  linear-gradient(-90deg, var(--ground) 50%, transparent) local 100% / 3rem 100% no-repeat,
  linear-gradient(90deg, var(--line), transparent) 0 / .8rem 100% no-repeat,
  linear-gradient(-90deg, var(--line), transparent) 100% / .8rem 100% no-repeat; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 9rem; max-width: 26rem; }
td.name { min-width: min(21rem, 40vw); }
td.code { white-space: normal; }
td code { font: .78rem ui-monospace, "DejaVu Sans Mono", monospace; white-space: nowrap; }
thead button { all: unset; cursor: pointer; font-weight: 600; }
thead button:focus-visible { outline: 2px solid var(--mark); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: var(--row); }
td.best { font-weight: 700; color: var(--mark); }
tbody.published { color: var(--dim); font-style: italic; }
figure { margin: 0; }
figcaption { margin-top: .4rem; }
img { display: block; max-width: max(100%, 44rem); height: auto; background: #fff; border-radius: 4px; }
"""

# Sorts ours by a column; published rows stay below.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const number = text => /^[-+]?[\\d.,]+(:\\d\\d)*/.test(text)
    ? text.match(/^[-+]?[\\d.,:]+/)[0].replaceAll(",", "").split(":").reduce((sum, part) => 60 * sum + parseFloat(part), 0) : NaN;
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const words = head.className !== "", before = head.getAttribute("aria-sort");
    const down = before ? (before === "ascending" ? -1 : 1) : words ? 1 : -1;
    heads.forEach(each => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down > 0 ? "ascending" : "descending");
    const order = (a, b) => {
      const [x, y] = [a, b].map(row => row.cells[column].textContent);
      if (!x || !y) return !x - !y;
      const [m, n] = [number(x), number(y)];
      return down * (words || isNaN(m) || isNaN(n) ? x.localeCompare(y) : m - n);
    };
    body.append(...[...body.rows].sort(order));
  }));
}
"""

MOST_LINES = 25  # of a table, and those with the best value of a score
PICTURES = {
    "figure.png": "Scenes",
    "curves.png": "Learning curves",
    "slices.png": "Slices",
}  # the pictures, in their order
_CODE = ("signature", "signatures", "commit")


def html(sweep: SweepRuns, pictures: Mapping[str, str], analysis: Analysis | None = None) -> str:
    """The page.

    Args:
        pictures: the names of the pictures that lie beside it, of those of `PICTURES`, and what is said of each.
        analysis: what came of the settings; None: it is not said.
    """
    body = [f"<h1>Sweep {escape(sweep.name)}</h1>", _list(summary(sweep))]
    body.append(
        '<nav>Files: <a href="table.md">table.md</a>, <a href="runs.csv">runs.csv</a></nav>'
    )
    found = tables(sweep)
    body += _table(found[0]) if found else []
    body += [
        part
        for name, title in PICTURES.items()
        if name in pictures
        for part in _picture(name, title, pictures[name])
    ]
    body += _analysis(analysis) if analysis else []
    body += [part for table in found[1:] for part in _table(table)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(sweep.name)}: cutslots sweep</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _list(lines: Sequence[str], kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<ul{mark}>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _picture(name: str, title: str, text: str) -> Iterator[str]:
    yield f"<h2>{title}</h2>"
    yield f'<figure><div class="wide"><a href="{name}"><img src="{name}" alt="{title}" loading="lazy"></a></div>'
    yield f"<figcaption>{escape(text)}</figcaption></figure>"


def _analysis(analysis: Analysis) -> Iterator[str]:
    yield f"<h2>{IMPORTANCE}</h2>"
    yield f"<p>{escape(analysis.about)}</p>"
    if not analysis.importance:
        return
    rows = "".join(
        f'<tr><td class="text">{escape(name)}</td><td>{share:.2f}</td><td class="text">'
        f'<meter min="0" max="1" value="{share:.4f}">{share:.2f}</meter></td></tr>'
        for name, share in analysis.importance.items()
    )
    heads = '<th class="text"><button>setting</button></th><th><button>share</button></th><th class="text"><button></button></th>'
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _table(table: Table) -> Iterator[str]:
    yield f"<h2>{escape(table.title)}</h2>"
    heads = "".join(
        f"<th{_class(column, name, table)}><button>{escape(name)}</button></th>"
        for column, name in enumerate(table.header)
    )
    marked = {at for at, _ in table.best}
    shown = [at for at in range(len(table.lines)) if at < MOST_LINES or at in marked]
    ours = "\n".join(_row(table.lines[at], table, at) for at in shown)
    theirs = "\n".join(_row(line, table, None) for line in table.published)
    published = f'\n<tbody class="published">\n{theirs}\n</tbody>' if theirs else ""
    yield f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>\n{ours}\n</tbody>{published}</table></div>'
    left_out = len(table.lines) - len(shown)
    lines = "1 more line is" if left_out == 1 else f"{left_out} more lines are"
    cut = [f"{lines} in table.md, and every run is in runs.csv."] if left_out else []
    if notes := [*cut, *table.notes]:
        yield _list(notes, "notes")


def _row(line: Sequence[str], table: Table, at: int | None) -> str:
    cells = (
        f"<td{_class(column, table.header[column], table, (at, column) in table.best)}>{_cell(cell, table.header[column])}</td>"
        for column, cell in enumerate(line)
    )
    return f"<tr>{''.join(cells)}</tr>"


def _cell(text: str, name: str) -> str:
    """A word of code is not broken: browsers would do it at the hyphen of "-dirty"."""
    return (
        " ".join(f"<code>{escape(word)}</code>" for word in text.split())
        if name in _CODE
        else escape(text)
    )


def _class(column: int, name: str, table: Table, best: bool = False) -> str:
    kinds = ["text"] if column < table.left and name != "rank" else []
    kinds += ["code"] if name in _CODE else []
    kinds += ["name"] if name == "configuration" else []
    kinds += ["best"] if best else []
    return f' class="{" ".join(kinds)}"' if kinds else ""
