"""Which rows of a batch an index means; the three tensor types share it."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from latentloom.errors import ShapeError

RowIndex = int | slice | Sequence[int] | Tensor


def row_numbers(index: RowIndex, num_rows: int, device: torch.device) -> Int[Tensor, "R"]:
    """Turn any index into row numbers in 0..num_rows-1; an integer gives one row.

    Args:
        index: an integer, a slice, integers, or a tensor of integers [R] or booleans [num_rows]; negatives count
            from the end.
        num_rows: size of the batch.
        device: where the answer lives.

    Raises:
        IndexError: a row that does not exist (so that `for row in batch` ends).
        ShapeError: a boolean tensor of another size, or an index that is not a list of rows.
    """
    if isinstance(index, slice):
        return torch.arange(num_rows, device=device)[_as_non_negative(index, num_rows)]
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        if index.shape != (num_rows,):
            raise ShapeError(f"a boolean index has shape {tuple(index.shape)}; the batch has {num_rows} rows")
        return index.to(device).nonzero().squeeze(-1)
    rows = torch.as_tensor([index] if isinstance(index, int) else index, device=device)
    if rows.numel() == 0:
        return torch.zeros(0, dtype=torch.long, device=device)
    if rows.ndim == 0:
        rows = rows.unsqueeze(0)
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ShapeError(
            f"an index of dtype {rows.dtype} and shape {tuple(rows.shape)}; give integers in one dimension"
        )
    if rows.min() < -num_rows or rows.max() >= num_rows:
        raise IndexError(f"row {index} of a batch of {num_rows}")
    return rows.long() % num_rows


def _as_non_negative(index: slice, num_rows: int) -> list[int]:
    # torch slices refuse negative steps, so the slice is spelled out
    return list(range(*index.indices(num_rows)))
