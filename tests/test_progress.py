"""Progress where it is seen: a terminal, a notebook, a log."""

import io
import logging
import sys
from types import ModuleType

import pytest

from ldvae.progress import progress_bar
from ldvae.train import EpochReport

REPORTS = [EpochReport(epoch, 3, 500.0 - epoch, 12_000.0, 0.1) for epoch in (1, 2, 3)]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, reports: list[EpochReport] = REPORTS) -> str:
    """What a training prints to a stream."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(True) as show:
        for report in reports:
            show(report)
    return stream.getvalue()


@pytest.mark.parametrize("where", ["terminal", "notebook"])
def test_a_bar_counts_epochs_from_the_first_and_shows_numbers_alone(where, monkeypatch):
    if where == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    text = shown(Terminal() if where == "terminal" else io.StringIO(), monkeypatch)
    assert "3/3" in text
    assert "ELBO 497.00, 12,000 cells/s" in text
    assert "None" not in text
    assert "nan" not in text


def test_a_resumed_training_starts_at_its_epoch(monkeypatch):
    text = shown(Terminal(), monkeypatch, REPORTS[1:])
    assert "0/3" not in text
    assert "3/3" in text


def test_a_log_gets_the_last_epoch_as_a_line(monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(
        logging, "raiseExceptions", False
    )  # of handlers that other tests left, whose streams are closed
    with caplog.at_level(logging.INFO, logger="ldvae.progress"):
        assert shown(io.StringIO(), monkeypatch) == ""
    assert [record.getMessage() for record in caplog.records] == ["epoch 3/3, ELBO 497.00, 12000 cells/s, 0 s left"]
    with progress_bar(False) as show:
        assert show is None
