"""The code for processors with other vectors: what this processor can run is run, what it cannot is assembled.

In: the programs of compiled_programs.py, products, and a training step, written for AVX2 and NEON. Out: a failure where
LLVM refuses the text, where the assembly lacks the vectors that it should have, or where the result differs.
Next: test_tile.py.
"""

import platform
from typing import Any

import numpy as np
import pytest

import needle as ndl
from compiled_programs import PROGRAMS
from interpreted import compile_module
from needle.compiler import program as program_module
from needle.compiler.emit import AVX2, AVX512, NEON, Machine
from needle.models import MLPResNet
from needle.runtime import native

TARGETS: dict[str, tuple[Machine, str, str, str, str]] = {
    "avx512": (AVX512, "x86_64-unknown-linux-gnu", "skylake-avx512", "x86_64", "zmm"),
    "avx2": (AVX2, "x86_64-unknown-linux-gnu", "haswell", "x86_64", "ymm"),
    "neon": (NEON, "aarch64-unknown-linux-gnu", "neoverse-n1", "aarch64", ".4s"),
}
"""Name -> vectors, triple, processor, what `platform.machine()` says there, and what the assembly must contain."""


def training_step() -> tuple[Any, list[ndl.Tensor]]:
    np.random.seed(0)
    model = MLPResNet(20, 34, num_blocks=1, drop_prob=0.0, norm=ndl.nn.LayerNorm1d)
    optimizer, loss_of = ndl.optim.Adam(model.parameters()), ndl.nn.SoftmaxLoss()

    def step(x: ndl.Tensor, y: ndl.Tensor) -> ndl.Tensor:
        optimizer.reset_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    x = ndl.Tensor(np.random.rand(50, 20).astype("float32"), requires_grad=False)
    return step, [x, ndl.Tensor(np.arange(50) % 10, requires_grad=False)]


def products() -> tuple[Any, list[ndl.Tensor]]:
    a, b = (np.random.default_rng(1).standard_normal(s) for s in ((37, 53), (53, 41)))

    def both(a: ndl.Tensor, b: ndl.Tensor) -> list[ndl.Tensor]:
        return [x for t in ("float32", "float64") for x in (a.astype(t) @ b.astype(t), b.T.astype(t) @ a.T.astype(t))]

    return both, [ndl.Tensor(a), ndl.Tensor(b)]


def halves() -> tuple[Any, list[ndl.Tensor]]:
    x = np.random.default_rng(2).standard_normal((7, 19))
    return lambda x: (2 - x).astype("float16") + 1, [ndl.Tensor(x, requires_grad=False)]


STEPS = {"a training step": training_step, "products": products, "half precision": halves}


@pytest.fixture
def made_for(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, str, str, str, str]:
    found = TARGETS[request.param]
    monkeypatch.setattr(program_module, "host_machine", lambda: found[0])
    return found


def assemble(text: str, triple: str, processor: str) -> str:
    llvm = native.engine().llvm
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(text)
    module.verify()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=processor, opt=1).emit_assembly(module)


@pytest.mark.parametrize("made_for", ["avx2", "neon"], indirect=True)
@pytest.mark.parametrize("name", [*PROGRAMS, *STEPS])
def test_other_processors_have_code(name: str, made_for: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, triple, processor, system, vectors = made_for
    function, arguments = STEPS[name]() if name in STEPS else (PROGRAMS[name].function, PROGRAMS[name].tensors())
    step = compile_module.compile(function)
    explained = step.explain(*arguments)
    program = explained.program
    monkeypatch.setattr(platform, "machine", lambda: system)
    text, _ = program_module.write_text(program.kernels, program.plan, program.graph, 1, machine)
    assembly = assemble(text, triple, processor)
    assert "zmm" not in assembly
    assert vectors in assembly or name not in STEPS


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 runs on x86 alone")
@pytest.mark.parametrize("made_for", ["avx2", "avx512"], indirect=True)
@pytest.mark.parametrize("name", STEPS)
def test_code_for_fewer_vectors_gives_the_same(name: str, made_for: Any) -> None:
    if made_for[0] is AVX512 and "+avx512f" not in native.engine().features:
        pytest.skip("this processor has no AVX-512")
    (function, arguments), (plain, same) = STEPS[name](), STEPS[name]()
    compiled = ndl.compile(function)
    for _ in range(3):
        found, wanted = (as_list(f(*given)) for f, given in ((compiled, arguments), (plain, same)))
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-5, atol=1e-5)


def as_list(result: Any) -> list[ndl.Tensor]:
    return result if isinstance(result, list) else [result]
