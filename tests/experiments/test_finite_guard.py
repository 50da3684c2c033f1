"""A training on numbers that are not finite ends, and says why; its checkpoints stay finite."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from beyondpixel.experiments.errors import UserError
from beyondpixel.experiments.finite_guard import FiniteGuard
from beyondpixel.lightning_modules import SegmentationModule


class Pixelwise(SegmentationModule):
    """One convolution; its logits are not finite in the given steps."""

    bad_steps: tuple[int, ...] = ()

    def configure_network(self) -> nn.Module:
        return nn.Conv2d(3, self.num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return logits * float("nan") if self.calls() in self.bad_steps else logits

    def calls(self) -> int:
        self._calls = getattr(self, "_calls", 0) + 1
        return self._calls


def batches(count: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    data = [
        {"image": torch.randn(3, 8, 8, generator=generator), "mask": torch.zeros(8, 8).long(), "id": f"photo{index}"}
        for index in range(count)
    ]
    return DataLoader(data, batch_size=1)


def trainer(tmp_path: Path, **arguments: Any) -> Trainer:
    return Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=6,
        callbacks=[FiniteGuard(patience=2)],
        **arguments,
    )


def test_several_steps_in_a_row_end_the_training(tmp_path: Path) -> None:
    module = Pixelwise(2, lr=0.1)
    module.bad_steps = (3, 4, 5, 6)
    with (
        pytest.warns(UserWarning, match="step 3 is skipped: the loss term 'pixel' was not finite, images photo2"),
        pytest.raises(UserError, match=r"the loss term 'pixel' was not finite in 3 steps .* photo4"),
    ):
        trainer(tmp_path).fit(module, batches(6))
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_single_steps_are_skipped(tmp_path: Path) -> None:
    """Weights are those of a training that never saw the bad batches."""
    module = Pixelwise(2, lr=0.1, momentum=0.0, weight_decay=0.0)
    module.bad_steps = (2, 4)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.warns(UserWarning, match="is skipped"):
        trainer(tmp_path).fit(module, batches(6))
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert any(not torch.equal(value, start[name]) for name, value in module.state_dict().items())


def test_a_finite_training_is_left_alone(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([FiniteGuard()], []):
        torch.manual_seed(0)
        module = Pixelwise(2, lr=0.1)
        plain = trainer(tmp_path)
        plain.callbacks = callbacks
        plain.fit(module, batches(6))
        weights.append(module.network.weight.detach())
    assert torch.equal(*weights)


def test_the_parameter_is_named_where_only_a_gradient_is_bad(tmp_path: Path) -> None:
    class Steep(Pixelwise):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            return loss + (self.network.weight.sum() * 0).abs().sqrt()  # finite, with an infinite slope

    with (
        pytest.warns(UserWarning, match="the gradient of network.weight was not finite"),
        pytest.raises(UserError, match=r"the gradient of network.weight was not finite"),
    ):
        trainer(tmp_path).fit(Steep(2, lr=0.1), batches(6))
