"""Which cells a caller means: every form that is taken, and every mistake that is refused."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldvae import InputError
from ldvae.rows import rows_of

OBS = pd.DataFrame(
    {"donor": list("aabbc"), "n": [1, 2, 3, 4, 5], "score": [0.1, np.nan, 0.3, 0.4, 0.5]}, index=list("vwxyz")
)
MASK = [True, False, False, True, False]


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        tuple(MASK),
        np.array(MASK),
        np.array(MASK)[:, None],
        np.array(MASK, dtype=object),
        pd.Series(MASK),
        pd.Series(MASK, index=OBS.index, dtype=object),
        pd.Series(MASK, index=OBS.index)[::-1],
        pd.array(MASK, dtype="boolean"),
        torch.tensor(MASK),
        OBS["n"].isin([1, 4]),
        "n == 1 or n == 4",
        "index in ['v', 'y']",
    ],
)
def test_a_mask_of_any_kind_gives_the_rows_where_it_is_true(mask):
    assert rows_of(mask, OBS).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("given", "rows"),
    [
        (None, [0, 1, 2, 3, 4]),
        (3, [3]),
        (np.int8(3), [3]),
        ([3, 0, 3, -1], [3, 0, 3, 4]),
        (range(1, 3), [1, 2]),
        (slice(1, None, 2), [1, 3]),
        (np.array([2, 1], dtype=np.uint8), [2, 1]),
        (np.array([2, 1], dtype=object), [2, 1]),
        (np.where(np.array(MASK)), [0, 3]),
        (np.argwhere(np.array(MASK)), [0, 3]),
        (pd.Series([4, 0], index=["p", "q"]), [4, 0]),
        (pd.array([4, 0], dtype="Int64"), [4, 0]),
        (["z", "v"], [4, 0]),
        (np.array(["z", "v"]), [4, 0]),
        (pd.Index(["z", "v"]), [4, 0]),
        (pd.Series(["z", "v"], dtype="category"), [4, 0]),
        (OBS.index[1:3], [1, 2]),
        ("donor == 'b' and score > 0.3", [3]),
    ],
)
def test_numbers_names_and_queries_give_rows_in_their_order(given, rows):
    found = rows_of(given, OBS)
    assert found.dtype == np.int64
    assert found.tolist() == rows


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.array(MASK, dtype=float), "indices holds values of dtype float64"),
        (np.array([0.0, 3.0]), "dtype float64"),
        ([1, 2.5], "dtype float64"),
        (np.array(MASK, dtype=int), "a mask must have dtype bool"),
        (pd.array([True, None, False, True, False], dtype="boolean"), "1 missing value among 5"),
        (pd.Series([True, None, False, True, False], dtype=object), "1 missing value among 5"),
        (np.array([True, None, False, True, False], dtype=object), "values of type NoneType, bool"),
        (np.array([True, 2], dtype=object), "values of type bool, int"),
        ([True, 2], "values of type bool, int"),
        (np.ma.array([0, 3, 4], mask=[0, 1, 0]), "1 masked value;"),
        (np.ma.array(MASK, mask=MASK), "2 masked values"),
        ([Decimal(1)], "values of type Decimal"),
        (["0", "3"], "2 of the 2 are not in adata.obs_names"),
        (["v", "nobody"], "1 of the 2 are not in adata.obs_names .e.g. 'nobody'"),
        (MASK[:3], "a mask of 3 cells, but there are 5"),
        (pd.Series(MASK[:4], index=list("vwxy")), "a mask of 4 cells"),
        (pd.Series(MASK, index=list("vwxya")), "index holds other cells"),
        (pd.Series(MASK, index=list("abcde")), "index holds other cells"),
        (pd.Series(MASK, index=[4, 3, 2, 1, 0]), "index holds other cells"),
        ([5], "names row 5, but there are 5 cells"),
        ([-6], "names row -6"),
        ([2**70], "an integer that is not a row"),
        ([], "selects none of the 5 cells"),
        ([False] * 5, "selects none of the 5 cells"),
        ("n > 99", "selects none of the 5 cells"),
        ("donor", "does not give true or false for each cell"),
        ("no_such_column > 1", "is not a query of adata.obs"),
        ("n ==", "is not a query of adata.obs"),
        ("v", r"is the string 'v', a name in adata.obs_names; write \['v'\]"),
        ({"v", "w"}, "is a set"),
        ({"v": True}, "is a dict"),
        (OBS, "is a DataFrame"),
        (2.0, "is a float"),
        (np.ones((2, 5), dtype=bool), "has shape .2, 5."),
        ([[0, 1], [2]], "cannot be read as a list of cells"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "dtype datetime64"),
        (True, "a mask of 1 cell"),
    ],
)
def test_what_is_no_choice_of_cells_is_refused_by_what_it_is(given, message):
    with pytest.raises(InputError, match=message):
        rows_of(given, OBS)


def test_namesakes_are_told_apart_by_a_query_and_refused_by_name():
    obs = OBS.set_axis(list("vvxyz"))
    assert rows_of("n == 1", obs).tolist() == [0]
    assert rows_of(["z", "x"], obs).tolist() == [4, 2]
    with pytest.raises(InputError, match=r"names 'v', and several cells have this name"):
        rows_of(["x", "v"], obs)


@given(st.lists(st.booleans(), min_size=5, max_size=5).filter(any))
def test_mask_numbers_names_and_query_agree(mask):
    rows = np.flatnonzero(mask)
    for same in (rows, OBS.index[rows], f"n in {OBS['n'].iloc[rows].tolist()}"):
        np.testing.assert_array_equal(rows_of(mask, OBS), rows_of(same, OBS))
