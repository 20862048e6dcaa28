"""Times text generation, one token after the other with a key/value cache, beside PyTorch in eager mode.

In: nothing but options. Out: milliseconds for each token of a GPT with 6 layers of 384 features, for one sequence.
Invariant: both sides have the same weights and write the likeliest token each time; the first tokens, in which needle
compiles, are written before the clock starts, and the texts are equal as long as rounding allows.
Next: ../needle/models/decoder.py.
"""

import argparse
import json
import time
from importlib import import_module
from typing import Any

import numpy as np

import harness

LAYERS, HEADS, WIDTH, CONTEXT, WORDS = 6, 6, 384, 256, 65
SIDES = ("needle", "torch")
LIMIT = 2.0
EQUAL = 16  # first tokens that must be equal: weights drawn at random leave the likeliest token little ahead


def weights() -> Any:
    """The network of both sides, as needle's."""
    np.random.seed(0)
    models = import_module("needle.models")
    return models.GPT(WORDS, CONTEXT, LAYERS, HEADS, WIDTH).eval()


def needle_reader() -> Any:
    """A function that reads one token and gives the likeliest next one."""
    decoder = import_module("needle.models").GPTDecoder(weights())
    return lambda token: int(decoder.read([token]).argmax())


def torch_reader() -> Any:
    """The same in PyTorch, op by op, with keys and values in tensors that are there from the start."""
    torch = import_module("torch")
    torch.set_num_threads(harness.THREADS)
    functional = torch.nn.functional
    held = {name: torch.from_numpy(array) for name, array in weights().state_dict().items()}
    held = {
        name: (x.squeeze(0) if name.endswith("bias") and x.ndim == 2 else x.T.contiguous() if ".c_" in name else x)
        for name, x in held.items()
    }
    past = torch.zeros(LAYERS, 2, 1, HEADS, CONTEXT, WIDTH // HEADS)
    used = 0

    def linear(x: Any, name: str) -> Any:
        return functional.linear(x, held[name + ".weight"], held[name + ".bias"])

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (WIDTH,), held[name + ".weight"], held[name + ".bias"])

    def read(token: int) -> int:
        nonlocal used
        with torch.inference_mode():
            x = (held["wte.weight"][token] + held["wpe.weight"][used]).reshape(1, 1, WIDTH)
            for i in range(LAYERS):
                block = f"h.{i}."
                parts = linear(norm(x, block + "ln_1"), block + "attn.c_attn").view(1, 1, 3, HEADS, WIDTH // HEADS)
                query, key, value = parts.permute(2, 0, 3, 1, 4)
                past[i, 0, :, :, used], past[i, 1, :, :, used] = key[:, :, 0], value[:, :, 0]
                mixed = functional.scaled_dot_product_attention(query, *past[i, :, :, :, : used + 1])
                x = x + linear(mixed.transpose(1, 2).reshape(1, 1, WIDTH), block + "attn.c_proj")
                hidden = functional.gelu(linear(norm(x, block + "ln_2"), block + "mlp.c_fc"), approximate="tanh")
                x = x + linear(hidden, block + "mlp.c_proj")
            used += 1
            return int(functional.linear(norm(x, "ln_f"), held["wte.weight"])[0, 0].argmax())

    return read


def measure(side: str, tokens: int) -> harness.Result:
    """Milliseconds for a token, the median of those after the first few, and the text."""
    read = needle_reader() if side == "needle" else torch_reader()
    text, times = [1], list[float]()
    for _ in range(tokens):
        started = time.perf_counter()
        text.append(read(text[-1]))
        times.append(time.perf_counter() - started)
    return {"ms": 1e3 * float(np.median(times[EQUAL:])), "text": text}


def compare(options: argparse.Namespace) -> None:
    """Both sides in turn."""
    started = time.perf_counter()
    sides = harness.present(SIDES)
    arguments = ["--tokens", str(options.tokens)]
    rounds = 1 if options.quick else options.rounds
    found = harness.in_turn(sides, rounds, lambda side, _: harness.run_side("bench/generate.py", side, arguments))
    texts = {side: results[0]["text"][:EQUAL] for side, results in found.items()}
    if len({tuple(text) for text in texts.values()}) > 1:
        raise harness.BenchError(f"the sides write different texts: {texts}")
    ms = harness.rows(found, "ms")
    claims = list[harness.Result]()
    if "torch" in sides:
        times = float(np.median(harness.ratios(ms, "torch", "needle")))
        claims.append(harness.claim("tokens per second, times torch eager", times, LIMIT, at_most=False))
    harness.report("generate", started, ms_per_token=harness.medians(ms), per_round=ms, claims=claims)


def main() -> None:
    """One side, or all."""
    parser = harness.options(__doc__, SIDES, rounds=5)
    parser.add_argument("--tokens", type=int, default=200, help="tokens that are written (default 200)")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.tokens)))
    else:
        compare(options)


if __name__ == "__main__":
    main()
