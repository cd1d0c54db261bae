"""The report: figures of plain tables and one self-contained page of HTML."""
