"""Calibration and evaluation samples, streamed from files, folders and Python objects."""

from onnxq.data.feed import Feed, samples_in
from onnxq.data.npz import read_labels
from onnxq.data.source import Data, count_samples, read_feeds

__all__ = ["Data", "Feed", "count_samples", "read_feeds", "read_labels", "samples_in"]
