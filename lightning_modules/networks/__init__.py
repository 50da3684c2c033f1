"""Networks: torch modules that know nothing of Lightning."""

from beyondpixel.lightning_modules.networks.alignment import FeatureGrid
from beyondpixel.lightning_modules.networks.deeplab import DeepLab
from beyondpixel.lightning_modules.networks.encoders import build_encoder, encoder_names
from beyondpixel.lightning_modules.networks.feature_memory import FeatureMemory
from beyondpixel.lightning_modules.networks.pretrained import load_pretrained, without_pretrained_weights
from beyondpixel.lightning_modules.networks.statistics_memory import StatisticsMemory

__all__ = [
    "DeepLab",
    "FeatureGrid",
    "FeatureMemory",
    "StatisticsMemory",
    "build_encoder",
    "encoder_names",
    "load_pretrained",
    "without_pretrained_weights",
]
