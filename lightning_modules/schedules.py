"""Warm-up and polynomial decay, counted in iterations: of the learning rate, and of a memory's momentum."""

from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from beyondpixel.losses.functional.arguments import check_choice


def warmup_poly(
    iteration: int,
    *,
    lr: float,
    max_iters: int,
    warmup_iters: int = 0,
    warmup_start_lr: float = 1e-4,
    power: float = 0.9,
    min_lr: float = 1e-6,
    decay_to: Literal["zero", "min_lr"] = "zero",
) -> float:
    r"""Learning rate of one iteration.

    With :math:`t` the iteration (the first is 1), :math:`T` = `max_iters` and :math:`w` = `warmup_iters`:

    .. math::
        \eta_t = \begin{cases}
            \eta_w + (\eta - \eta_w)\, t / w & t \le w \\
            \max\big(\eta\,(1 - (t - w) / (T - w))^{p},\ \eta_{min}\big) & t > w \text{, decay to zero} \\
            (\eta - \eta_{min})\,(1 - (t - 1 - w) / (T - w))^{p} + \eta_{min} & t > w \text{, decay to } \eta_{min}
        \end{cases}

    The defaults follow the RMI authors' published code (Zhao et al., NeurIPS 2019), which warms up from 1e-4 and never
    falls below 1e-6. `warmup_start_lr=0, min_lr=0` follows their paper's text. `decay_to="min_lr"` follows the MCIBI
    authors' published code (Jin et al., ICCV 2021), with `min_lr` a hundredth of `lr`: the polynomial itself ends at
    :math:`\eta_{min}`, and is a function of the completed iterations, so that the first one uses the full `lr`.

    Args:
        iteration: number of the iteration, from 1 to `max_iters`; later ones have the last one's rate.
        lr: the base rate, reached at the end of the warm-up.
        max_iters: iterations of the whole training, the warm-up included.
        warmup_iters: iterations of the linear warm-up; 0 for none.
        warmup_start_lr: start of the linear warm-up (at iteration 0, which is never trained).
        power: exponent of the decay.
        min_lr: floor, or end, of the decay.
        decay_to: with "zero" the polynomial decays to 0, clipped at `min_lr`; with "min_lr" it decays to `min_lr`.

    Example:
        >>> [round(warmup_poly(t, lr=0.1, max_iters=10, warmup_iters=2, warmup_start_lr=0.0), 4) for t in (1, 2, 6, 10)]
        [0.05, 0.1, 0.0536, 0.0]
        >>> [round(warmup_poly(t, lr=0.01, max_iters=4, min_lr=1e-4, decay_to="min_lr"), 5) for t in (1, 2, 3, 4)]
        [0.01, 0.00774, 0.00541, 0.00294]
    """
    if iteration <= warmup_iters:
        # the authors' min(): a warm-up that starts above lr is clipped at lr
        return min(warmup_start_lr + (lr - warmup_start_lr) * iteration / warmup_iters, lr)
    counted = iteration if decay_to == "zero" else min(iteration, max_iters) - 1
    remaining = max(1.0 - (counted - warmup_iters) / (max_iters - warmup_iters), 0.0)
    decay: float = remaining**power
    return max(lr * decay, min_lr) if decay_to == "zero" else (lr - min_lr) * decay + min_lr


def annealed_momentum(iteration: int, *, base: float, max_iters: int) -> float:
    r"""Momentum of MCIBI's memory in one iteration (Jin et al., ICCV 2021; the formula is the published code's).

    .. math:: m_t = (1 - t / T)^{0.9}\, (m_0 - m_0 / 100) + m_0 / 100

    with :math:`t` the completed iterations and :math:`T` = `max_iters`: `warmup_poly` with `decay_to="min_lr"`.

    Args:
        iteration: iterations completed before this one, from 0.
        base: the first iteration's momentum.
        max_iters: iterations of the whole training.

    Example:
        >>> [round(annealed_momentum(t, base=0.9, max_iters=4), 4) for t in (0, 1, 2, 3)]
        [0.9, 0.6968, 0.4865, 0.2649]
    """
    return warmup_poly(iteration + 1, lr=base, max_iters=max_iters, min_lr=0.01 * base, decay_to="min_lr")


class WarmupPolyLR(LambdaLR):
    """`warmup_poly` as a scheduler: call `step()` after every iteration, not after every epoch.

    Every parameter group keeps its ratio to `lr`: a head group with `10 * lr` stays at ten times the encoder's
    rate, also at the warm-up's start and at the floor, as in the RMI authors' code.

    Args:
        optimizer: its groups' initial rates are multiples of `lr`.
        lr: base rate, above 0.
        max_iters: iterations of the whole training; must exceed `warmup_iters`.
        warmup_iters, decay_to, shape: the other arguments of `warmup_poly`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> scheduler = WarmupPolyLR(optimizer, lr=0.1, max_iters=4, warmup_iters=2, warmup_start_lr=0.0)
        >>> scheduler.get_last_lr()
        [0.05]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        lr: float,
        max_iters: int,
        warmup_iters: int = 0,
        decay_to: Literal["zero", "min_lr"] = "zero",
        **shape: float,
    ) -> None:
        if lr <= 0:
            raise ValueError(f"lr must be above 0, got {lr}")
        if warmup_iters < 0:
            raise ValueError(f"warmup_iters must be 0 or more, got {warmup_iters}")
        check_choice("decay_to", decay_to, ("zero", "min_lr"))
        if max_iters <= warmup_iters:
            raise ValueError(
                f"warmup_iters={warmup_iters} leaves none of the {max_iters} training iterations for the decay: "
                "train longer (trainer.max_steps or trainer.max_epochs) or lower warmup_iters"
            )

        def factor(steps_done: int) -> float:
            rate = warmup_poly(
                steps_done + 1, lr=lr, max_iters=max_iters, warmup_iters=warmup_iters, decay_to=decay_to, **shape
            )
            return rate / lr

        super().__init__(optimizer, factor)
