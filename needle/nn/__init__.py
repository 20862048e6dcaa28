"""Layers. Next: module.py."""

from needle.nn.linear import Dropout, Linear, ReLU
from needle.nn.loss import SoftmaxLoss
from needle.nn.module import Flatten, Identity, Module, Parameter, Residual, Sequential
from needle.nn.norm import BatchNorm1d, LayerNorm1d

__all__ = [
    "BatchNorm1d",
    "Dropout",
    "Flatten",
    "Identity",
    "LayerNorm1d",
    "Linear",
    "Module",
    "Parameter",
    "ReLU",
    "Residual",
    "Sequential",
    "SoftmaxLoss",
]
