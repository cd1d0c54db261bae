"""How far a training is: a bar in a terminal or a notebook, lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from ldvae.train import EpochReport

logger = logging.getLogger(__name__)


@contextmanager
def progress_bar(enabled: bool) -> Iterator[Callable[[EpochReport], None] | None]:
    """A bar with epoch, ELBO and cells/s in a terminal or a notebook; elsewhere a log line every half minute."""
    if not enabled:
        yield None
        return
    if not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        said = time.monotonic()

        def log(report: EpochReport) -> None:
            nonlocal said
            if time.monotonic() - said > 30 or report.epoch == report.max_epochs:
                said = time.monotonic()
                logger.info("epoch %d/%d, ELBO %.2f, %.0f cells/s, %.0f s left", *report)

        yield log
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm] = []

        def show(report: EpochReport) -> None:
            if not bars:  # made with the first report, which knows the number of epochs
                start = {"initial": report.epoch - 1, "total": report.max_epochs}
                bars.append(stack.enter_context(tqdm(**start, desc="train", unit="epoch", dynamic_ncols=True)))
            bars[0].set_postfix_str(f"ELBO {report.elbo:.2f}, {report.cells_per_s:,.0f} cells/s", refresh=False)
            bars[0].update(report.epoch - bars[0].n)

        yield show
