"""The taught networks for pictures and for sequences: ResNet9 and LanguageModel.

In: sizes. Out: Modules. Invariant: layers, their order and their arguments are as taught: course code runs unchanged.
The networks themselves are in needle.models, so that the command `needle` trains the same ones.
Next: optimizers.py.
"""

from needle.models import CausalTransformer, ConvBN, LanguageModel, ResNet9

__all__ = ["CausalTransformer", "ConvBN", "LanguageModel", "ResNet9"]
