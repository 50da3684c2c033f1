"""Somebody's own project: a plain LightningModule of theirs, trained with RMI.

It uses nothing of beyondpixel but the loss.
"""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import beyondpixel.losses
from beyondpixel.losses import RMILoss


class TinySegmenter(pl.LightningModule):
    """Three convolutions."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, num_classes, 1),
        )
        self.loss = RMILoss(num_classes, region_size=3, downsampling_factor=2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """One step."""
        images, masks = batch
        loss: Tensor = self.loss(self.network(images), masks)
        self.log("loss", loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """The loss over the whole epoch, from the metric that the loss is."""
        print(f"epoch loss {self.loss.compute():.4f}")
        self.loss.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


def main() -> None:
    """Train for three epochs on blobs whose class is their color."""
    pl.seed_everything(0)
    masks = torch.randint(0, 3, (16, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = torch.eye(3)[masks].movedim(-1, 1) + 0.1 * torch.randn(16, 3, 32, 32)
    masks[:, :2] = 255
    model = TinySegmenter(num_classes=3)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, DataLoader(TensorDataset(images, masks), batch_size=4))
    print("from", beyondpixel.losses.__file__)


if __name__ == "__main__":
    main()
