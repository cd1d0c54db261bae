"""Columns whose groups are compared: which may not be the same, and which the model takes out of the comparison."""

from __future__ import annotations

from collections.abc import Container, Mapping
from itertools import chain, combinations
from typing import Any


def same_columns(options: Mapping[str, str | None]) -> list[str]:
    """Pairs of options that name one obs column, though they need two.

    Parameters
    ----------
    options
        The column of each option; None for none.

    Examples
    --------
    >>> same_columns({"replicate_key": "donor", "condition_key": "donor", "cell_type_key": None})
    ["replicate_key and condition_key both name 'donor'; name two columns."]
    """
    return [
        f"{first} and {second} both name {column!r}; name two columns."
        for (first, column), (second, other) in combinations(options.items(), 2)
        if column is not None and column == other
    ]


def corrected_columns(keys: Mapping[str, Any]) -> list[str]:
    """The columns that the model corrects for: its batch key and its covariates.

    Parameters
    ----------
    keys
        Arguments of `setup_anndata`; what is missing, None or empty is not registered.

    Examples
    --------
    >>> corrected_columns({"batch_key": "donor", "labels_key": "cell_type", "continuous_covariate_keys": ["age"]})
    ['donor', 'age']
    """
    covariates = [keys.get(f"{kind}_covariate_keys", ()) for kind in ("categorical", "continuous")]
    return [str(key) for key in (keys.get("batch_key"), *chain.from_iterable(covariates)) if key]


def removed_effects(options: Mapping[str, str | None], corrected: Container[str]) -> list[str]:
    """Warnings of options that compare the groups of a column whose effect the model removes, one for each column.

    Parameters
    ----------
    options
        The column whose groups each option compares; None for none.
    corrected
        From `corrected_columns`.

    Examples
    --------
    >>> options = {"de.contrasts[0]": "stim", "de.contrasts[1]": "age", "programs.condition_key": "stim"}
    >>> removed_effects(options, ["stim"])[0].partition(" which")[0]
    "de.contrasts[0], programs.condition_key: the model corrects for 'stim',"
    """
    found: dict[str, list[str]] = {}
    for option, column in options.items():
        if column is not None and column in corrected:
            found.setdefault(column, []).append(option)
    return [
        f"{', '.join(names)}: the model corrects for {column!r}, which removes the effect of {column!r} from the "
        "programs and from the model's own comparison. To compare its groups, leave it out of batch_key and covariates "
        "(setup)."
        for column, names in found.items()
    ]
