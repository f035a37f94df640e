"""Calibration and evaluation samples, streamed from files, folders and Python objects."""

from onnxq.data.feed import Feed, samples_in
from onnxq.data.labels import labels_of
from onnxq.data.npz import read_labels
from onnxq.data.parts import content, first_feeds, set_apart
from onnxq.data.source import Data, count_samples, read_feeds

__all__ = [
    "Data",
    "Feed",
    "content",
    "count_samples",
    "first_feeds",
    "labels_of",
    "read_feeds",
    "read_labels",
    "samples_in",
    "set_apart",
]
