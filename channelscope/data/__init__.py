"""Labelled images: datasets by name or from the user's own tensors, samples of them, and batches.

>>> from channelscope.data import load
>>> digits = load("digits")
>>> digits.test
Split(359 images of 1 x 8 x 8, uint8)
>>> images, labels = next(digits.test.batches(128))
>>> images.shape, images.dtype
(torch.Size([128, 1, 8, 8]), torch.float32)
"""

from channelscope.data.sampling import augment, stratified
from channelscope.data.sources import NAMES, as_dataset, load
from channelscope.data.splits import Dataset, Split

__all__ = ["NAMES", "Dataset", "Split", "as_dataset", "augment", "load", "stratified"]
