"""Lists keep their values and types on the way to the device."""

import pytest
import torch

from engine.worker.upload import upload, upload_all

CPU = torch.device("cpu")
LISTS = [
    ([1, -2, 3], torch.int32),
    ((2**40, -1), torch.int64),
    ([0.1, 1e-30], torch.float32),
    ([0.1], torch.float64),
    ([True, False], torch.bool),
    ([], torch.int32),
    ([[1, 2], [3, 4], [5, 6]], torch.int32),
    ([range(3)], torch.int64),
    ([[], []], torch.int32),
]


@pytest.mark.parametrize(("values", "dtype"), LISTS)
def test_numbers_are_those_that_torch_makes(values, dtype) -> None:
    made = upload(values, dtype, CPU)
    wanted = torch.tensor([list(v) if isinstance(v, range) else v for v in values], dtype=dtype)
    assert made.dtype == dtype
    assert made.shape == wanted.shape
    assert torch.equal(made, wanted)


def test_several_lists_stay_apart() -> None:
    first, second = upload_all([([1, 2], torch.int32), ([0.5], torch.float32)], CPU)
    assert first.tolist() == [1, 2]
    assert second.tolist() == [0.5]
