"""Callbacks: pictures of predictions, throughput, predictions as files."""

from beyondpixel.lightning_modules.callbacks.prediction_pictures import PredictionPictures
from beyondpixel.lightning_modules.callbacks.prediction_writer import PredictionWriter
from beyondpixel.lightning_modules.callbacks.throughput import Throughput

__all__ = ["PredictionPictures", "PredictionWriter", "Throughput"]
