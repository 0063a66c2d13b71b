import numpy as np
import pytest

from hf_bert4rec.data.arguments import check_bool, check_count, check_number


@pytest.mark.parametrize("value", [1, 0.5, np.int64(1), np.float32(0.5)])
def test_numbers_of_python_and_numpy_are_accepted(value):
    check_number("share", value, "above 0", lambda number: number > 0)


@pytest.mark.parametrize("value", [None, "1", True, np.True_, [1], 1j, float("nan"), 0])
def test_other_values_and_numbers_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match=r"^`share` must be above 0, found "):
        check_number("share", value, "above 0", lambda number: number > 0)


@pytest.mark.parametrize("value", [2.0, 0, True, "2", None])
def test_a_count_is_a_whole_number_from_1_on(value):
    check_count("top_k", 1)
    with pytest.raises(ValueError, match=r"^`top_k` must be a whole number of at least 1, found "):
        check_count("top_k", value)


@pytest.mark.parametrize("value", ["false", 1, 0, None])
def test_only_bools_of_python_and_numpy_are_true_or_false(value):
    for accepted in (True, False, np.True_, np.False_):
        check_bool("prefixes", accepted)
    with pytest.raises(ValueError, match=rf"^`prefixes` must be True or False, found {value!r}\.$"):
        check_bool("prefixes", value)
