"""Data: data sets, transforms and the loader that makes batches of Tensors.

In: the files below. Out: their public names, as `ndl.data.NAME`.
Invariant: names only; `needle.data.download`, which needs the network modules, is imported by those who download.
Next: dataset.py.
"""

from needle.data.dataset import Dataset, ImageDataset, NDArrayDataset
from needle.data.digits import DigitsDataset
from needle.data.loader import DataLoader
from needle.data.mnist import MNISTDataset, find_mnist, parse_mnist
from needle.data.transforms import Compose, Normalize, RandomCrop, RandomFlipHorizontal, Transform

__all__ = [
    "Compose",
    "DataLoader",
    "Dataset",
    "DigitsDataset",
    "ImageDataset",
    "MNISTDataset",
    "NDArrayDataset",
    "Normalize",
    "RandomCrop",
    "RandomFlipHorizontal",
    "Transform",
    "find_mnist",
    "parse_mnist",
]
