"""Rows of a tensor are copied only if they are not neighbours."""

import pytest
import torch

from engine.worker.row_gather import copy_rows, take_rows

TENSOR = torch.arange(20.0).view(5, 4)


@pytest.mark.parametrize(
    "indices", [[], [0], [4], [1, 2, 3], [0, 1, 2, 3, 4], [3, 1], [2, 2], [0, 2]]
)
def test_rows_come_in_the_order_asked_for(indices: list[int]) -> None:
    expected = [TENSOR[index].tolist() for index in indices]
    assert take_rows(TENSOR, indices).tolist() == expected
    assert copy_rows(TENSOR, indices).tolist() == expected


def test_all_rows_are_the_tensor_itself_and_neighbours_lie_where_they_lay() -> None:
    assert take_rows(TENSOR, range(5)) is TENSOR, "its producer may recognise it"
    assert take_rows(TENSOR, [1, 2]).data_ptr() == TENSOR[1].data_ptr()
    assert copy_rows(TENSOR, [1, 2]).data_ptr() != TENSOR[1].data_ptr()
