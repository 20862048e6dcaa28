"""Data: data sets, transforms and the loader that makes batches of Tensors.

In: the files below. Out: their public names, as `ndl.data.NAME`.
Invariant: names only; `needle.data.download`, which needs the network modules, is imported by those who download.
Next: dataset.py.
"""

from needle.data.cifar10 import CIFAR10Dataset, find_cifar10, read_cifar10
from needle.data.dataset import ColourDataset, Dataset, ImageDataset, NDArrayDataset
from needle.data.digits import DigitsDataset
from needle.data.folder import ImageFolderDataset
from needle.data.loader import DataLoader
from needle.data.mnist import MNISTDataset, find_mnist, parse_mnist
from needle.data.table import CSVDataset
from needle.data.text import Characters, Corpus, Dictionary, batchify, find_shakespeare, get_batch, read_split
from needle.data.tokens import TokenFile, WindowDataset
from needle.data.transforms import Compose, Normalize, RandomCrop, RandomFlipHorizontal, Transform

__all__ = [
    "CIFAR10Dataset",
    "CSVDataset",
    "Characters",
    "ColourDataset",
    "Compose",
    "Corpus",
    "DataLoader",
    "Dataset",
    "Dictionary",
    "DigitsDataset",
    "ImageDataset",
    "ImageFolderDataset",
    "MNISTDataset",
    "NDArrayDataset",
    "Normalize",
    "RandomCrop",
    "RandomFlipHorizontal",
    "TokenFile",
    "Transform",
    "WindowDataset",
    "batchify",
    "find_cifar10",
    "find_mnist",
    "find_shakespeare",
    "get_batch",
    "parse_mnist",
    "read_cifar10",
    "read_split",
]
