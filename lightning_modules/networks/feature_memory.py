"""The memory of MCIBI: representations of each class, mined from the whole data set."""

from typing import Literal, get_args

import torch
from torch import Tensor

from beyondpixel.lightning_modules.networks.class_means import class_means
from beyondpixel.lightning_modules.networks.class_memory import ClassMemory
from beyondpixel.lightning_modules.networks.distributed import process_rank_and_count, sum_over_processes
from beyondpixel.losses.functional.arguments import check_choice

Initialization = Literal["mean", "random_pixel", "random"]


class FeatureMemory(ClassMemory):
    """The memory M of MCIBI (Jin et al., "Mining Contextual Information Beyond Image", ICCV 2021).

    `update` moves the row of every class c in the batch towards the features r_i of its pixels:

        M_c ← (1 − m) M_c + m Σ_i w_i r_i,    w_i = (1 − cos(r_i, M_c)) / Σ_j (1 − cos(r_j, M_c))

    (strategy "cosine"; with "mean", w_i is one over the number of pixels). As in the authors' code, r_i are features
    upsampled bilinearly to the labels' size. They are never stored: see `class_means`. All is computed in float64, with
    or without autocast.

    *Initialization.* An empty slot is set as `initialization` says, whatever the momentum and the strategy: to the mean
    of the class's pixels in this batch ("mean", the authors' code), or to one of them ("random_pixel", the paper's
    text). With several slots, as in the authors' code, a class fills one slot per batch, in order, from all its pixels;
    filled slots do not change meanwhile. Once all are filled, each pixel goes to the slot with the highest cosine (the
    first, if equal), and each slot has its own weights. With "random" no slot is ever empty: each starts with numbers
    from a standard normal distribution, and with momentum 0 keeps them, a control that is independent of the data.

    Slots without pixels do not change. Where every pixel matches its slot exactly, Σ(1 − cos) = 0 and the weights are
    equal. A random pixel is drawn by a private generator that is the same on all processes and does not touch PyTorch's
    global random state; the draw depends on `seed`, class and slot, so it is the same after a restart. See also
    `ClassMemory`.

    The authors' code differs: rows of zeros mean "empty", slots without pixels decay, 0 / 0 is NaN, and memories are
    averaged over processes whether they saw the class or not.

    Args:
        num_classes: K.
        channels: C of the features.
        slots: S, representations per class. More than one needs the strategy "cosine".
        initialization: "mean", "random_pixel" or "random".
        seed: seed of the random pixels or numbers; unused with "mean".

    Attributes:
        memory: buffer (K, S, C) float32, zeros where nothing was seen. `update` writes into it; read it through
            `representations`.
        seen: buffer (K, S) bool, which slots are filled.

    Raises:
        ValueError: for a number below 1 or an unknown initialization.

    Example:
        >>> memory = FeatureMemory(num_classes=3, channels=2)
        >>> features = torch.tensor([[3.0, 4.0]]).view(1, 2, 1, 1)
        >>> memory.update(features, torch.tensor([[[1, 1], [255, 1]]]), momentum=0.9)
        >>> memory.seen.tolist(), memory.representations()[1].tolist()
        ([[False], [True], [False]], [[3.0, 4.0]])
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        slots: int = 1,
        *,
        initialization: Initialization = "mean",
        seed: int = 0,
    ) -> None:
        super().__init__(num_classes, channels, slots)
        check_choice("initialization", initialization, get_args(Initialization))
        self.initialization = initialization
        generator = torch.Generator().manual_seed(seed)
        # on the CPU, as the generator is, whatever the default device
        self._draws = torch.rand(num_classes, slots, dtype=torch.float64, generator=generator, device="cpu")
        memory = torch.zeros(num_classes, slots, channels, dtype=torch.float32)
        if initialization == "random":
            memory.copy_(torch.randn(memory.shape, generator=generator, device="cpu"))
            self.seen.fill_(True)
        self.register_buffer("memory", memory)

    def representations(self) -> Tensor:
        """Return a copy of the memory, (K, S, C) float32, zeros where nothing was seen.

        It has no graph: a later `update` changes neither it nor the gradients of values computed from it.
        """
        return self.memory.clone()

    @torch.no_grad()
    def update(
        self,
        features: Tensor,
        target: Tensor,
        *,
        momentum: float,
        strategy: Literal["cosine", "mean"] = "cosine",
        ignore_index: int = 255,
    ) -> None:
        """Move the memory towards the features of a batch; see the class for the equation.

        Args:
            features: (N, C, h, w) at the network's stride, any floating-point type and memory format.
            target: (N, H, W) integer labels, at full size.
            momentum: m in [0, 1], the weight of the batch; MCIBI anneals it polynomially from 0.9.
            strategy: "cosine" or "mean"; "mean" only with one slot.
            ignore_index: label of the void pixels.

        Raises:
            TypeError: for features that are not floating point, or labels that are not integers.
            ValueError: for shapes, devices or labels that do not match, a momentum out of range, or a strategy that is
                unknown or needs one slot. The memory is then unchanged.
        """
        self._check_strategy(strategy)
        self.check_batch(features, target, momentum)
        filling = ~self.seen.all(dim=1)  # (K,)
        reference = None
        if strategy == "cosine":
            # a row of zeros has the cosine 0 with everything: all pixels go to slot 0, with the weight 1
            reference = self.memory.double().masked_fill(filling[:, None, None], 0)
        # (K, S, C), (K, S)
        means, present = class_means(features, target, self.num_classes, ignore_index=ignore_index, reference=reference)

        first_empty = (~self.seen).int().argmax(dim=1, keepdim=True)  # (K, 1)
        filled = torch.zeros_like(self.seen).scatter(1, first_empty, (filling & present[:, 0])[:, None])
        initial = means[:, 0]
        if self.initialization == "random_pixel" and bool(filled.any()):
            draws = self._draws.to(filled.device).masked_fill(~filled, -1).amax(dim=1)
            kept = keep_random_pixels(target, draws, ignore_index=ignore_index)
            initial = class_means(features, kept, self.num_classes, ignore_index=ignore_index)[0][:, 0]
        moved = (1 - momentum) * self.memory.double() + momentum * means
        memory = torch.where((present & ~filling[:, None])[..., None], moved.float(), self.memory)
        memory = torch.where(filled[..., None], initial[:, None].float(), memory)
        self.write(memory, self.seen | filled, target, ignore_index)

    def extra_repr(self) -> str:
        """Sizes, for `print(module)`."""
        return f"{self.num_classes}, {self.channels}, slots={self.slots}, initialization={self.initialization!r}"

    def _check_strategy(self, strategy: str) -> None:
        check_choice("strategy", strategy, ("cosine", "mean"))
        if strategy == "mean" and self.slots > 1:
            raise ValueError(
                f"strategy: expected 'cosine' as slots is {self.slots}, got 'mean'; plain means do not determine which "
                "slot a pixel belongs to, and the slots would become equal. Set slots=1 for 'mean'"
            )


def keep_random_pixels(target: Tensor, draws: Tensor, *, ignore_index: int) -> Tensor:
    """Set all pixels to void except one per class, drawn uniformly from the batches of all processes.

    The pixels of a class are numbered over the images in order, process 0 first, so n processes pick the same pixel as
    one process with the concatenated batch. Every process must call this, with the same draws.

    Args:
        target: (N, H, W) integer labels.
        draws: (K,) float64 in [0, 1): which pixel, as a fraction of the class's pixels; negative for classes to skip.
        ignore_index: the void label.

    Example:
        >>> target = torch.tensor([[[0, 0, 0, 1]]])
        >>> keep_random_pixels(target, torch.tensor([0.5, -1]).double(), ignore_index=255)
        tensor([[[255,   0, 255, 255]]])
    """
    rank, processes = process_rank_and_count()
    shares = draws.tolist()
    wanted = [k for k, share in enumerate(shares) if share >= 0]
    positions = {k: (target == k).flatten().nonzero()[:, 0] for k in wanted}
    counts = torch.zeros(processes, len(shares), dtype=torch.int64, device=target.device)
    for k in wanted:
        counts[rank, k] = len(positions[k])
    (counts,) = sum_over_processes(counts)
    before, total = counts[:rank].sum(0).tolist(), counts.sum(0).tolist()
    kept = torch.full_like(target, ignore_index, dtype=torch.int64)
    for k in wanted:
        number = int(shares[k] * total[k]) - before[k]
        if 0 <= number < len(positions[k]):
            kept.view(-1)[positions[k][number]] = k
    return kept
