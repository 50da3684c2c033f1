"""Networks: torch modules that know nothing of Lightning."""

from beyondpixel.lightning_modules.networks.alignment import FeatureGrid
from beyondpixel.lightning_modules.networks.deeplab import DeepLab
from beyondpixel.lightning_modules.networks.encoders import build_encoder, encoder_names
from beyondpixel.lightning_modules.networks.pretrained import load_pretrained, without_pretrained_weights

__all__ = [
    "DeepLab",
    "FeatureGrid",
    "build_encoder",
    "encoder_names",
    "load_pretrained",
    "without_pretrained_weights",
]
