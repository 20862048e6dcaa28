"""VAE: a variational autoencoder of pictures, which draws new ones from random numbers.

In: sizes. Out: Modules: flat pictures (batch, pixels) in [0, 1] -> what the loss needs. Invariant: random numbers are
drawn in the forward pass alone.
Next: encoder.py.
"""

from needle import init, nn
from needle.functional import binary_cross_entropy_with_logits
from needle.nn.module import check_sizes
from needle.ops import exp, sigmoid
from needle.tensor import Tensor

Beliefs = tuple[Tensor, Tensor, Tensor, Tensor]
"""Logits of the pixels, the picture itself, and means and log-variances of its code."""


class VAE(nn.Module):
    """An autoencoder whose codes are distributions near the standard normal (Kingma and Welling, 2014).

    Encoder and decoder have two layers of `hidden_dim` units; a picture becomes `latent_dim` numbers.
    """

    def __init__(self, pixels: int, hidden_dim: int = 400, latent_dim: int = 16) -> None:
        super().__init__()
        check_sizes("VAE", pixels=pixels, hidden_dim=hidden_dim, latent_dim=latent_dim)
        self.latent_dim = latent_dim
        self.encoder = _perceptron(pixels, hidden_dim, 2 * latent_dim)
        self.decoder = _perceptron(latent_dim, hidden_dim, pixels)

    def forward(self, x: Tensor) -> Beliefs:
        code = self.encoder(x)
        mean, log_variance = code[:, : self.latent_dim], code[:, self.latent_dim :]
        if self.training:
            noise = init.randn(*mean.shape, dtype=mean.dtype)
            return self.decoder(mean + noise * exp(log_variance * 0.5)), x, mean, log_variance
        return self.decoder(mean), x, mean, log_variance

    def draw(self, codes: Tensor) -> Tensor:
        """Pictures (n, pixels) in [0, 1] from codes (n, latent_dim), such as standard normal numbers."""
        return sigmoid(self.decoder(codes))


def _perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def negative_elbo(beliefs: Beliefs) -> Tensor:
    """Nats that a picture costs at most: those of its pixels, and those of its code (the mean over the batch)."""
    logits, x, mean, log_variance = beliefs
    pixels = binary_cross_entropy_with_logits(logits, x, reduction="sum")
    code = (mean * mean + exp(log_variance) - log_variance - 1).sum() * 0.5
    return (pixels + code) / x.shape[0]
