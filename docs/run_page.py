"""Run the code of a tutorial as a reader pastes it into IPython: run_page.py PAGE.md, in an empty folder."""

import re
import sys
from pathlib import Path


def code_of(page: str) -> list[str]:
    """The code cells of a MyST page, but for those that the site does not show."""
    found = []
    for block in re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        lines = block.splitlines(keepends=True)
        options = [line for line in lines if line.startswith(":")]
        if "remove-cell" not in "".join(options):
            found.append("".join(lines[len(options) :]))
    return found


def main(page: Path) -> None:
    """Run cell after cell, and stop at the first that fails."""
    from IPython.core.interactiveshell import InteractiveShell

    import ldvae

    print(f"{page.name} with ldvae {ldvae.__version__} of {Path(ldvae.__file__).parent}", flush=True)
    shell = InteractiveShell.instance()
    cells = code_of(page.read_text(encoding="utf-8"))
    for number, code in enumerate(cells, start=1):
        if not shell.run_cell(code, store_history=True).success:
            sys.exit(f"{page.name}: cell {number} of {len(cells)} failed:\n{code}")
    print(f"{page.name}: {len(cells)} of {len(cells)} cells ran.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
