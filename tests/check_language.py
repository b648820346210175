"""Lint step: refuse words that make the English of the project hard to read.

`python tests/check_language.py [FILE...]` prints FILE:LINE: WORD: ADVICE for every finding, and
exits with status 1 if there are any. Default: all files that git tracks.
"""

import re
import subprocess
import sys
from pathlib import Path

CHECKED = (".py", ".md", ".sh", ".yaml", ".toml", ".html", ".css", "Makefile")
BANNED = {
    r"anew": "again, or name what is new",
    r"whatever|whoever|whomever|whichever": "name the cases",
    r"said|told": "a verb of the field: logged, printed, reported, passed",
    r"of (its|their|his|her|our|your) own": "its own X, or a separate X",
    r"stands?( in| on| beside)?(?= (in|on|at|beside|there|under|above|below|for|where|as)\b)": "is",
    r"(lies|lie|lay) (in|at|on|within|beside|there|outside|between|under|near)": "is",
    r"(go|goes|going|went) on": "continues, resumes",
    r"for want of|have not got|has not got|what becomes of|what became of": "say it directly",
    r"(is|are|was) no (?!longer\b|more\b|less\b|fewer\b|better\b|worse\b|larger\b)\w+": "is not a",
    r"nevertheless|thereby|therein|thereof|whereof|aforesaid": "a plain word",
    r"to be had|in vain|be it": "available, without success",
    r"pictures?": "image or figure",
    r"paint(s|ed|ing)?": "decode, draw",
    r"mends?|mended": "fix",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{i}>\b(?:{words})\b)" for i, words in enumerate(BANNED)), re.IGNORECASE
)


def findings(path: Path) -> list[str]:
    """One line of text per banned word in a file."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for match in PATTERN.finditer(line):
            advice = list(BANNED.values())[int((match.lastgroup or "w0")[1:])]
            found.append(f"{path}:{number}: {match[0]!r}: write {advice}")
    return found


def main(paths: list[str]) -> int:
    """Check the given files, by default every tracked file; returns the exit status."""
    if not paths:
        tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
        paths = tracked.stdout.splitlines()
    checked = [
        Path(p) for p in paths if p.endswith(CHECKED) and Path(p).name != Path(__file__).name
    ]
    found = [line for path in checked if path.is_file() for line in findings(path)]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
