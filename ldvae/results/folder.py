"""The results of one dataset in Python: each file is an attribute, read when it is asked for."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvae.errors import InputError
from ldvae.results.files import DE, NAMED, File

if TYPE_CHECKING:
    import pandas as pd


class ResultsFolder:
    """The results of one dataset; each attribute is a file, read when it is asked for.

    Attributes have the names that `files` lists. A table is a DataFrame, JSON a dictionary, an h5ad an AnnData, arrays
    are a dictionary; a page, a figure or a model is its path. Files of runs or projections are dictionaries by their
    names, and so are the tables in `de`.

    Parameters
    ----------
    folder
        Folder of the results of one dataset, such as results/kang.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not any(self._found(file) for file in NAMED.values()):
            inside = sorted(path.name for path in self.folder.glob("*/") if (path / "qc/summary.json").exists())
            raise InputError(
                f"{self.folder} (working directory {Path.cwd()}) is not a folder of results: none of their files is "
                f"there"
                + (
                    f", but it holds those of {', '.join(inside)}. Name one."
                    if inside
                    else ". Expected results/DATASET."
                )
            )

    def _found(self, file: File) -> dict[str, Path]:
        """The paths at which a file is there, by run or projection; by "" where it has neither."""
        if "{" not in file.path:
            path = file.at(self.folder)
            return {"": path} if path.exists() else {}
        before, after = re.split(r"\{\w+\}", file.path)
        paths = sorted(self.folder.glob(f"{before}*{after}"))
        return {path.relative_to(self.folder / before).parts[0]: path for path in paths}

    @property
    def files(self) -> pd.DataFrame:
        """What is there: name of the attribute, with path, what it holds and which verb wrote it."""
        import pandas as pd

        rows = {name: (file.path, file.holds, file.writer) for name, file in NAMED.items() if self._found(file)}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["path", "holds", "writer"]).rename_axis("name")

    def __getattr__(self, name: str) -> Any:
        if name not in NAMED:
            close = difflib.get_close_matches(name, NAMED)
            hint = f"; did you mean {', '.join(close)}?" if close else "; `files` lists what there is"
            raise AttributeError(f"results have no {name!r}{hint}")
        file = NAMED[name]
        found = self._found(file)
        if not found:
            raise InputError(
                f"{file.at(self.folder, run='RUN', projection='NAME')} is not there; `ldvae {file.writer}` writes it."
            )
        contents = {key: contents_of(path, file) for key, path in found.items()}
        return contents.get("", contents)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.files.index]

    def __repr__(self) -> str:
        return f"Results of {self.folder.absolute().name}: {', '.join(self.files.index)}"


def contents_of(path: Path, file: File) -> Any:
    """What a file holds, or its path where Python has no use for more."""
    from ldvae.io import read_table

    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".h5ad":
        from anndata.io import read_h5ad

        return read_h5ad(path)
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix == ".csv":
        import pandas as pd

        return pd.read_csv(path)
    if path.suffix in (".tsv", ".gz"):
        return read_table(path, index=file.index, text=file.text)
    if file is DE:
        tables = {table.name.split(".tsv")[0]: table for table in sorted(path.glob("*.tsv*"))}
        text = ("gene", "contrast", "group1", "group2", "within", "column")
        return {name: read_table(table, text=text) for name, table in tables.items()}
    return path


def read_results(folder: str | Path) -> ResultsFolder:
    """Open the results of one dataset, as the workflow wrote them.

    Parameters
    ----------
    folder
        Folder of the results of one dataset, such as results/kang.

    Returns
    -------
    ResultsFolder
        Each attribute is a file, read when it is asked for: `programs`, `loadings`, `scores`, `associations`,
        `annotated` (AnnData), `de` (tables by name) and so on; `files` lists them.

    Raises
    ------
    InputError
        If the folder holds no results.

    Examples
    --------
    >>> from pathlib import Path
    >>> import ldvae
    >>> folder = Path("results/kang/programs")  # as the workflow leaves it
    >>> folder.mkdir(parents=True)
    >>> _ = (folder / "loadings.tsv").write_text("gene\\tP1\\nISG15\\t1.2\\nACTB\\t-0.1\\n")
    >>> results = ldvae.read_results("results/kang")
    >>> results
    Results of kang: loadings
    >>> results.loadings["P1"].idxmax()
    'ISG15'
    """
    return ResultsFolder(folder)
