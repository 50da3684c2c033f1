"""Somebody's own project: their network in beyondpixel's SegmentationModule, which trains, scores and saves it."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

import beyondpixel.lightning_modules
from beyondpixel.lightning_modules import SegmentationModule


class PlainNet(SegmentationModule):
    """A few convolutions at full resolution; `width` is saved in checkpoints like any hyper-parameter."""

    def __init__(self, num_classes: int, *, width: int = 8, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)

    def configure_network(self) -> nn.Module:
        """Build it."""
        width = self.hparams["width"]
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, self.num_classes, 1)
        )


def batches(number: int) -> list[dict[str, Any]]:
    """Blobs whose class is their color."""
    masks = torch.randint(0, 3, (number, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    images = torch.eye(3)[masks].movedim(-1, 1) + 0.1 * torch.randn(number, 3, 32, 32)
    return [
        {"image": image, "mask": mask, "id": str(index)}
        for index, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]


def main() -> None:
    """Train, test, save and load."""
    pl.seed_everything(0)
    module = PlainNet(3, width=12, lr=0.02, class_names=["r", "g", "b"])
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, DataLoader(batches(32), batch_size=4))
    (figures,) = trainer.test(module, DataLoader(batches(8), batch_size=4), verbose=False)
    print(f"mIoU {figures['test/mIoU']:.3f}")
    trainer.save_checkpoint("plain_net.ckpt")
    loaded = PlainNet.load_from_checkpoint("plain_net.ckpt", weights_only=True).eval()
    module.save_pretrained("shared_model")
    shared = PlainNet.from_pretrained("shared_model")
    images = torch.randn(1, 3, 21, 34)
    with torch.no_grad():
        expected = module.eval()(images)
        print(
            "same",
            torch.equal(loaded(images), expected),
            torch.equal(shared(images), expected),
            loaded.hparams["width"],
        )
    print("from", beyondpixel.lightning_modules.__file__)


if __name__ == "__main__":
    main()
