"""The figures and tables of the README and the documentation, out of benchmarks/results.

python benchmarks/figures.py            draws docs/figures/*.svg and rewrites the parts between the marks
python benchmarks/figures.py --check    says what differs, and exits with 1

A part of a page stands between `<!-- figures: NAME -->` and `<!-- figures: end -->`; NAME is a function of `tables.py`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import plot_svg  # noqa: E402
import tables  # noqa: E402

ROOT = HERE.parent
MARK = re.compile(r"(<!-- figures: ([a-z_]+)((?: \w+)*) -->\n).*?(<!-- figures: end -->)", re.S)


def pages(root: Path = ROOT) -> list[Path]:
    """The files that may have such parts."""
    return [root / "README.md", root / "README.zh.md", *sorted((root / "docs").rglob("*.md"))]


def rewrite(text: str) -> str:
    """The text with each marked part made anew."""

    def part(found: re.Match[str]) -> str:
        body = getattr(tables, found[2])(*found[3].split())
        return f"{found[1]}{body}\n{found[4]}"

    return MARK.sub(part, text)


def wanted(root: Path = ROOT) -> dict[Path, str]:
    """File -> what it has to hold."""
    files = {page: rewrite(page.read_text(encoding="utf-8")) for page in pages(root) if page.is_file()}
    return files | {root / "docs" / "figures" / name: svg for name, svg in plot_svg.drawings().items()}


def main() -> int:
    stale = {path: text for path, text in wanted().items() if not path.is_file() or path.read_text("utf-8") != text}
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(ROOT)} differs from benchmarks/results: run `make figures`")
        return 1 if stale else 0
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
