"""Callbacks: images of predictions, confusion matrix, throughput and inference time."""

from beyondpixel.lightning_modules.callbacks.confusion_figure import ConfusionFigure
from beyondpixel.lightning_modules.callbacks.inference_time import InferenceTime
from beyondpixel.lightning_modules.callbacks.prediction_images import PredictionImages
from beyondpixel.lightning_modules.callbacks.throughput import Throughput

__all__ = ["ConfusionFigure", "InferenceTime", "PredictionImages", "Throughput"]
