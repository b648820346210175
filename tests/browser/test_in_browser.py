"""The demo sweep in MLflow and in its report, in headless Chromium.

CUTSLOTS_SCREENSHOTS=DIR keeps the screenshots (default: a temporary folder of pytest).
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from cutslots.data import prepare, sources
from cutslots.report.sweep import sweep_runs
from cutslots.tracking import children, find_runs
from cutslots.tracking.queries import FoundRun

pytest.importorskip("playwright", reason="no Playwright: pip install playwright")

from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium: apt-get install chromium"),
]

DEMO = Path(__file__).parents[2] / "sweeps" / "demo.py"
SWEEP, EXPERIMENT, SCORE = "demo-smoke", "smoke", "best/ari_fg"
PATIENCE = 60_000.0  # milliseconds for anything to appear on a machine that does other things too

# Ids of the runs in MLflow's list from top to bottom; only their positions give the order.
LISTED = """() => [...document.querySelectorAll('[role=grid] a[href*="/runs/"]')]
  .sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)
  .map(link => link.getAttribute('href').match(/runs\\/(\\w+)/)[1])"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of commands that share a home."""
    own = {
        "CUTSLOTS_HOME": str(tmp_path_factory.mktemp("demo")),
        "CUTSLOTS_FACTORS": str(tmp_path_factory.mktemp("factors")),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return {**inherited, **own, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(environment: dict[str, str]) -> Path:
    """The home in which the demo sweep has run, at its smallest."""
    home = Path(environment["CUTSLOTS_HOME"])
    prepare(
        "scenes", None, home / "data" / "scenes", sources.load("scenes").Options(count=160, size=32)
    )
    # Two seeds: two runs of the baseline, never stopped early, and one sampled trial.
    command = [sys.executable, str(DEMO), "--smoke", "--seeds", "1", "2", "--trials", "1"]
    ran = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return home


@pytest.fixture(autouse=True)
def at_home(own_home: None, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests read the tracking store of that home."""
    monkeypatch.setenv("CUTSLOTS_HOME", str(home))


@pytest.fixture(scope="module")
def served(home: Path, environment: dict[str, str]) -> Iterator[str]:
    """The link to the experiment that `cutslots ui` prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "cutslots", "ui", "--port", str(port)]
    with subprocess.Popen(
        command,
        cwd=home,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        assert server.stderr is not None
        lines = []
        try:
            for line in server.stderr:
                lines.append(line)
                if found := re.fullmatch(
                    rf"runs of {EXPERIMENT}: (http://127\.0\.0\.1:{port}/\S+)\n", line
                ):
                    yield found[1]
                    return
            raise AssertionError("".join(lines))
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.communicate(timeout=15)
            server.kill()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("CUTSLOTS_SCREENSHOTS")
    folder = Path(given).resolve() if given else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def screenshots(kept: Path, record_property: Callable[[str, object], None]) -> Path:
    """The folder of screenshots; the summary of the tests names it."""
    record_property("screenshots", str(kept))
    return kept


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without sandbox and /dev/shm, which root in a container lacks."""
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A new page; requests to other machines fail the test."""
    page = browser.new_page(viewport={"width": 1920, "height": 1000})
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    page.close()
    elsewhere = [
        url
        for url in asked
        if not re.match(r"http://127\.0\.0\.1:|(blob:http://127\.0\.0\.1:)|file:|data:", url)
    ]
    assert not elsewhere


def listed(page: Page, expected: list[str]) -> list[str]:
    """Ids of the listed runs, from top to bottom, after waiting for the expected ones."""
    with suppress(TimeoutError):
        page.wait_for_function(
            f"expected => String(({LISTED})()) === expected", arg=",".join(expected)
        )
    return page.evaluate(LISTED)


def runs(direction: str) -> list[FoundRun]:
    """The sweep's run and its trials by ARI-FG, from MLflow's API."""
    return find_runs(f"tags.sweep = '{SWEEP}'", [f"metrics.`{SCORE}` {direction}"])


def best() -> FoundRun:
    """The trial with the highest ARI-FG of all."""
    return max(children(parent().run_id), key=lambda run: run.metrics.get(SCORE, -1.0))


def parent() -> FoundRun:
    (found,) = find_runs(f"tags.sweep = '{SWEEP}' and tags.kind = 'sweep'")
    return found


def test_the_experiment_lists_parent_and_children(
    served: str, page: Page, screenshots: Path
) -> None:
    above = parent()
    assert len(children(above.run_id)) == 3
    page.goto(served)
    assert listed(page, [above.run_id]) == [above.run_id], "the sweep, with its trials folded away"
    page.get_by_role("gridcell").filter(
        has=page.get_by_role("link", name=above.name, exact=True)
    ).get_by_role("button").click()
    newest = sorted(children(above.run_id), key=lambda run: run.started, reverse=True)
    expected = [above.run_id, *(run.run_id for run in newest)]
    assert listed(page, expected) == expected
    for run in newest:
        assert page.get_by_role("grid").get_by_role("link", name=run.name, exact=True).is_visible()
    page.screenshot(path=screenshots / "mlflow-runs.png")


def test_sorting_by_ari_fg_puts_the_best_first(served: str, page: Page, screenshots: Path) -> None:
    page.goto(served)
    page.get_by_test_id("sort-select-dropdown").click()
    page.get_by_test_id(f"sort-select-{SCORE}").click()
    expected = [run.run_id for run in runs("DESC")]
    shown = listed(page, expected)
    assert shown == expected
    assert shown[0] == best().run_id
    page.screenshot(path=screenshots / "mlflow-sorted.png")
    page.get_by_test_id(f"sort-header-{SCORE}").click()  # the other way round
    expected = [run.run_id for run in runs("ASC")]
    assert expected != shown
    assert listed(page, expected) == expected


def test_a_run_shows_its_scores_and_masks(served: str, page: Page, screenshots: Path) -> None:
    page.goto(served.replace("/runs?", f"/runs/{best().run_id}?"))
    page.get_by_role("heading", name=best().name).wait_for()
    page.get_by_role("link", name=SWEEP, exact=True).wait_for()  # its parent
    page.screenshot(path=screenshots / "mlflow-run.png")
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("figures", exact=True).click()
    last = f"step-{30:08d}.png"
    page.get_by_text(last, exact=True).click()
    image = page.get_by_alt_text(f"figures/{last}")
    image.wait_for()
    page.wait_for_function(
        "image => image.complete && image.naturalWidth > 0", arg=image.element_handle()
    )
    assert image.evaluate("image => [image.naturalWidth > 500, image.clientWidth > 300]") == [
        True,
        True,
    ]
    page.screenshot(path=screenshots / "mlflow-masks.png")


@pytest.fixture(scope="module")
def report(
    home: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The page of the sweep's report."""
    out = tmp_path_factory.mktemp("results")
    command = [sys.executable, "-m", "cutslots", "report", SWEEP, "--out", str(out)]
    ran = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    return out / SWEEP / "index.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_the_report_opens_from_disk(
    width: int, scheme: Literal["light", "dark"], report: Path, page: Page, screenshots: Path
) -> None:
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None,
    )
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    assert page.title() == f"{SWEEP}: cutslots sweep"
    images = page.locator("img").all()
    assert len(images) >= 2  # scenes and curves; slices need more trials
    for image in images:
        image.scroll_into_view_if_needed()  # it is loaded when it comes into sight
        page.wait_for_function(
            "image => image.complete && image.naturalWidth > 0", arg=image.element_handle()
        )
    configurations = sweep_runs(SWEEP).configurations
    shown = page.locator("table").first.locator("tbody tr").all_inner_texts()
    assert len(shown) == len(configurations)
    for text, configuration in zip(shown, configurations, strict=True):
        assert all(trial.tags["signature"] in text for trial in configuration.trials)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, (
        "only tables and images are wider than the page"
    )
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=screenshots / f"report-{width}-{scheme}.png", full_page=True)
    assert not wrong


def test_a_click_on_a_head_sorts_the_report(report: Path, page: Page) -> None:
    page.goto(report.as_uri())
    scores = page.locator("table").first
    column = scores.locator("thead th").all_inner_texts().index("rank")
    cells = scores.locator(f"tbody tr td:nth-child({column + 1})")
    ranks = sorted(cells.all_inner_texts())
    for expected in (ranks[::-1], ranks, ranks[::-1]):
        scores.locator("thead button").nth(column).click()
        assert cells.all_inner_texts() == expected
