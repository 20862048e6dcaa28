"""vae: an autoencoder of digits that draws new ones.

In: settings. Out: the program. Invariant: what it draws at the end is decided by the seed.
Next: ../run.py.
"""

import io
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from needle.backward import no_grad
from needle.extras import load_extra
from needle.models.vae import VAE, negative_elbo
from needle.programs.digits import DigitProgram
from needle.programs.program import Finished
from needle.tensor import Tensor
from needle.train.files import replace_file
from needle.train.metrics import Score
from needle.train.report import draw_curves

GRID, CURVES = "generated.png", "report.png"
ROWS = 10
SIDE, GAP = 28, 2  # pixels that a picture has at least, and between two


@dataclass(frozen=True)
class VAEProgram(DigitProgram):
    """The loss is the nats that a picture costs at most."""

    name: ClassVar[str] = "vae"
    about: ClassVar[str] = "an autoencoder that draws new digits"
    expect: ClassVar[str] = (
        "98.5 nats a picture after 20 epochs of MNIST, in 1 min 33 s (seed 0, two cores), and a page of digits"
    )
    score: ClassVar[Score] = ""
    files: ClassVar[tuple[str, ...]] = (GRID, CURVES)

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.001
    schedule: str = "cosine"
    weight_decay: float = 0.0
    hidden_dim: int = 400
    latent_dim: int = 10

    def build_model(self, facts: dict[str, Any]) -> VAE:
        """The network for flat pictures."""
        return VAE(math.prod(facts["input_shape"]), self.hidden_dim, self.latent_dim)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The negative evidence lower bound; labels do not matter."""
        return negative_elbo(outputs)

    def write_report(self, run: Finished) -> str:
        """Learning curves, and a grid of digits that nobody wrote."""
        height, width = run.facts["input_shape"]
        page = _page(draw_digits(run.model, ROWS * ROWS, self.seed).reshape(-1, height, width))
        image: Any = load_extra("PIL.Image", "Pillow").fromarray((255 * page).astype(np.uint8))
        file = io.BytesIO()
        image.save(file, "PNG")
        replace_file(run.folder / GRID, file.getvalue())
        replace_file(run.folder / CURVES, draw_curves(run.history, f"{self.name} on {run.data.name}"))
        return f"generated digits: {run.folder / GRID}; curves: {run.folder / CURVES}"


def _page(pictures: Any) -> Any:
    """ROWS * ROWS pictures side by side, small ones enlarged, with white between them."""
    scale = -(-SIDE // min(SIDE, *pictures.shape[1:]))
    tiles = np.pad(pictures.repeat(scale, 1).repeat(scale, 2), ((0, 0), (0, GAP), (0, GAP)), constant_values=1)
    _, height, width = tiles.shape
    page = tiles.reshape(ROWS, ROWS, height, width).transpose(0, 2, 1, 3).reshape(ROWS * height, ROWS * width)
    return page[:-GAP, :-GAP]


def draw_digits(model: VAE, count: int, seed: int = 0) -> Any:
    """New pictures (count, pixels) in [0, 1]; the same ones for the same seed."""
    codes = np.random.RandomState(seed).randn(count, model.latent_dim).astype(np.float32)
    model.eval()
    with no_grad():
        return model.draw(Tensor(codes, requires_grad=False)).numpy()
