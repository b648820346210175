"""A sparse Cholesky factor as plain arrays: for files, for sharing between processes, for GPUs."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Factor:
    """L of `L L^T = M[permutation][:, permutation]`, with its columns split into runs.

    Attributes:
        permutation: `(n,)` int64.
        starts: `(runs + 1,)` int64, the first column of each run, then n.
        ends: `(runs + 1,)` int64, the start of each run's part of `rows`, then its length.
        rows: int64, for each run the rows below its diagonal block, ascending.
        values: float64, for each run its panel, row-major: the lower-triangular diagonal block,
            then the rows below.
    """

    permutation: Tensor
    starts: Tensor
    ends: Tensor
    rows: Tensor
    values: Tensor

    def panels(self) -> list[tuple[int, int, Tensor, Tensor]]:
        """For each run: first column, last column + 1, rows below, `(columns + rows, columns)`."""
        starts, ends = self.starts.tolist(), self.ends.tolist()
        panels, offset = [], 0
        for start, stop, first, last in zip(starts, starts[1:], ends, ends[1:], strict=False):
            width, height = stop - start, stop - start + last - first
            panel = self.values[offset : offset + width * height].view(height, width)
            panels.append((start, stop, self.rows[first:last], panel))
            offset += width * height
        return panels

    def lower(self) -> sp.csr_array:
        """L as a sparse matrix."""
        parts = []
        for start, stop, rows, panel in self.panels():
            local, column = np.nonzero(panel.numpy())
            row = np.concatenate([np.arange(start, stop), rows.numpy()])[local]
            parts.append((panel.numpy()[local, column], row, column + start))
        data, row, column = (np.concatenate(part) for part in zip(*parts, strict=True))
        n = len(self.permutation)
        return sp.csr_array((data, (row, column)), shape=(n, n))

    def __deepcopy__(self, memo: dict) -> "Factor":
        """Copies of a layer share its factor, which is immutable."""
        return self
