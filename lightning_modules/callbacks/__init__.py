"""Callbacks: pictures of predictions and of confusion, throughput, time of inference, predictions as files."""

from beyondpixel.lightning_modules.callbacks.confusion import ConfusionPicture
from beyondpixel.lightning_modules.callbacks.inference_time import InferenceTime
from beyondpixel.lightning_modules.callbacks.prediction_pictures import PredictionPictures
from beyondpixel.lightning_modules.callbacks.prediction_writer import PredictionWriter
from beyondpixel.lightning_modules.callbacks.throughput import Throughput

__all__ = ["ConfusionPicture", "InferenceTime", "PredictionPictures", "PredictionWriter", "Throughput"]
