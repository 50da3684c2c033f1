"""Networks: torch modules without dependency on Lightning."""

from beyondpixel.lightning_modules.networks.aggregation import DatasetContext, aggregate_representations
from beyondpixel.lightning_modules.networks.alignment import FeatureGrid
from beyondpixel.lightning_modules.networks.authors_weights import convert_authors_state_dict
from beyondpixel.lightning_modules.networks.context_network import ContextNetwork, NetworkOutputs
from beyondpixel.lightning_modules.networks.contexts import ASPP, FeaturePyramid, ObjectContext, PyramidPooling
from beyondpixel.lightning_modules.networks.deeplab import DeepLab
from beyondpixel.lightning_modules.networks.encoders import build_encoder, encoder_names
from beyondpixel.lightning_modules.networks.feature_memory import FeatureMemory
from beyondpixel.lightning_modules.networks.layers import ClassificationHead, SelfAttentionBlock
from beyondpixel.lightning_modules.networks.mcibi import MCIBI
from beyondpixel.lightning_modules.networks.pretrained import without_pretrained_weights
from beyondpixel.lightning_modules.networks.statistics_memory import StatisticsMemory

__all__ = [
    "ASPP",
    "MCIBI",
    "ClassificationHead",
    "ContextNetwork",
    "DatasetContext",
    "DeepLab",
    "FeatureGrid",
    "FeatureMemory",
    "FeaturePyramid",
    "NetworkOutputs",
    "ObjectContext",
    "PyramidPooling",
    "SelfAttentionBlock",
    "StatisticsMemory",
    "aggregate_representations",
    "build_encoder",
    "convert_authors_state_dict",
    "encoder_names",
    "without_pretrained_weights",
]
