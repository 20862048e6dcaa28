"""Networks, as plain Modules.

In: the files below. Out: their public names.
Invariant: nothing here knows of data or training; names, shapes and numbers of parameters are those of the field.
Next: mlp_resnet.py.
"""

from needle.models.decoder import GPTDecoder, RecurrentDecoder
from needle.models.encoder import SentenceEncoder, load_encoder
from needle.models.generate import generate
from needle.models.gpt import GPT
from needle.models.language_model import CausalTransformer, LanguageModel
from needle.models.mlp_resnet import MLPResNet, ResidualBlock
from needle.models.resnet9 import ConvBN, DavidNet, ResNet9
from needle.models.vae import VAE

__all__ = [
    "GPT",
    "VAE",
    "CausalTransformer",
    "ConvBN",
    "DavidNet",
    "GPTDecoder",
    "LanguageModel",
    "MLPResNet",
    "RecurrentDecoder",
    "ResNet9",
    "ResidualBlock",
    "SentenceEncoder",
    "generate",
    "load_encoder",
]
