"""A Cholesky factor that never aborts a run."""

import torch
from torch import Tensor

# the ridge is multiplied by this after each failure; 2⁵³ is past all rounding of a float64 matrix
_ESCALATION = 2.0**13
_ATTEMPTS = 6


def stable_cholesky(matrix: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Factor matrix + ridge · I, with a growing ridge where that is not positive definite.

    Args:
        matrix: (M, d, d) symmetric float64.
        ridge: what is added to the diagonal in any case.

    Returns:
        The lower factors (M, d, d), NaN where the matrix is not finite, and the number of finite matrices for which
        the ridge was not enough, an int64 scalar.
    """
    shifted = matrix.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(ridge)
    # the variant that raises would end the run, and the compiled one may return nonsense without `info`
    factor, info = torch.linalg.cholesky_ex(shifted)
    failed = info > 0
    # on an accelerator this waits for the device; it stands where little is left to queue
    if not bool(failed.any()):
        return factor, failed.sum()
    finite = shifted.isfinite().all(-1).all(-1)
    failed &= finite
    jittered = failed.sum()
    largest = matrix.diagonal(dim1=1, dim2=2).abs().amax(1)
    extra = torch.maximum(largest * 2**-50, torch.full_like(largest, ridge))
    for _ in range(_ATTEMPTS):
        shifted.diagonal(dim1=1, dim2=2).add_((extra * failed)[:, None])
        factor, info = torch.linalg.cholesky_ex(shifted)
        failed = (info > 0) & finite
        if not bool(failed.any()):
            break
        extra = extra * _ESCALATION
    return torch.where((finite & ~failed)[:, None, None], factor, torch.nan), jittered
