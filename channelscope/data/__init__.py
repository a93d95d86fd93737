"""Labelled images: datasets by name or from what the user has, samples of them, and batches.

Each part of a dataset (train, val, test) is a `Split`: a `MemorySplit`, or a `LazySplit`, whose
images are read as they are needed. Both give the same batches.

>>> from channelscope.data import load
>>> digits = load("digits")
>>> digits.test
MemorySplit(359 images of 1 x 8 x 8, uint8)
>>> images, labels = next(digits.test.batches(128))
>>> images.shape, images.dtype
(torch.Size([128, 1, 8, 8]), torch.float32)
"""

from channelscope.data.blocks import block_size, iterate_blocks
from channelscope.data.datasets import Dataset
from channelscope.data.images import ImageFiles
from channelscope.data.readers import NAMES, load
from channelscope.data.sampling import augment, sample_stratified
from channelscope.data.sources import as_dataset
from channelscope.data.splits import LazySplit, MemorySplit, Split

__all__ = [
    "NAMES",
    "Dataset",
    "ImageFiles",
    "LazySplit",
    "MemorySplit",
    "Split",
    "as_dataset",
    "augment",
    "block_size",
    "iterate_blocks",
    "load",
    "sample_stratified",
]
