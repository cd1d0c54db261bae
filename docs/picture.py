"""Make docs/report.png anew from a report: `python docs/picture.py results/kang/report.html`; needs chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1400, 1985  # of the part of the page that is shown, in CSS pixels
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]


def main() -> None:
    """Take a picture of the top of a report, with few colors, so that the file stays small."""
    page = Path(sys.argv[1]).resolve()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        command = [chromium, *FLAGS, f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        picture = Image.open(shot).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        picture.save(Path(__file__).with_name("report.png"), optimize=True)


if __name__ == "__main__":
    main()
