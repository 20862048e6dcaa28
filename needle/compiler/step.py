"""Step: the function that calls the kernels, one after the other, on every thread.

In: kernels in order, and a Plan. Out: the LLVM IR of all. Invariants: equal kernels are written once; every thread
runs the same code, and takes its part by its number; nothing is allocated.
Next: program.py.
"""

import platform

from needle.compiler.axes import is_serial
from needle.compiler.chain import Chain
from needle.compiler.emit import Machine, emit
from needle.compiler.graph import Graph, Node
from needle.compiler.kernel import Kernel, first_draw, identity, starts
from needle.compiler.lower import Lowered
from needle.compiler.parted import emit_parted
from needle.compiler.place import Place, Span, size_of
from needle.compiler.plan import Plan
from needle.compiler.share import SPAN
from needle.compiler.tile import Emitter, emit_product
from needle.compiler.turned import across, emit_turned
from needle.runtime.barrier import BEFORE, NEEDED, TAKE, barrier_text

ARENA, NUMBERS, SCRATCH, CLOCK, FIRST = 0, 1, 2, 3, 4
"""Words of the argument block; from FIRST on: inputs, outputs, updates."""


def write_text(
    kernels: list[Lowered], plan: Plan, graph: Graph, threads: int, machine: Machine, profiled: bool = False
) -> tuple[str, int]:
    """The LLVM text of the step, and how many different kernels it has; `profiled` notes the time after each part."""
    step = _Step(kernels, plan, graph, threads, machine, profiled)
    return step.text(), len(step.known)


def callback_word(graph: Graph) -> int:
    """Where the argument block holds the address of what opaque ops are computed by."""
    return FIRST + len(graph.inputs) + len(graph.outputs) + len(graph.updates)


def word(place: Place, graph: Graph) -> int:
    """Where the argument block holds the address of a place."""
    kind, number = place
    if kind == "input":
        return FIRST + number
    if kind == "output":
        return FIRST + len(graph.inputs) + number
    return FIRST + len(graph.inputs) + len(graph.outputs) + list(graph.updates).index(number)


def _flush_denormals() -> tuple[list[str], list[str]]:
    """Lines that make numbers below 1e-38 count as 0 during a step, and that undo it: they take a hundred times longer,
    and gradients that fade away are full of them."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return [], []
    before = [
        "  %old = alloca i32",
        "  %new = alloca i32",
        "  call void @llvm.x86.sse.stmxcsr(ptr %old)",
        "  %modes = load i32, ptr %old",
        f"  %flush = or i32 %modes, {0x8040}",
        "  store i32 %flush, ptr %new",
        "  call void @llvm.x86.sse.ldmxcsr(ptr %new)",
    ]
    return before, ["  call void @llvm.x86.sse.ldmxcsr(ptr %old)"]


class _Step:
    """The step being written."""

    def __init__(
        self, kernels: list[Lowered], plan: Plan, graph: Graph, threads: int, machine: Machine, profiled: bool
    ) -> None:
        self.kernels, self.plan, self.graph = kernels, plan, graph
        self.threads, self.machine, self.profiled = threads, machine, profiled
        self.known: dict[str, str] = {}  # identity -> name
        self.bodies: list[str] = []
        self.declared: set[str] = set()
        self.lines: list[str] = []
        self.told = 0  # kernels that told their threads' sums
        self.numbered = 0  # above the numbers of all pieces of kernels and chains so far
        self.before: list[str] = []  # where those of each begin

    def text(self) -> str:
        """Declarations, kernels, and the function that calls them."""
        chains = {c.first: c for c in self.plan.chains}
        spans = {span.first: span for span in self.plan.spans}
        at = 0
        while at < len(self.kernels):
            span = spans.get(at)
            if span is not None:
                self._loop(span)
                at = span.stop
                continue
            if self.plan.barriers[at] and self.threads > 1:
                self.lines.append("  call void @barrier(ptr %sync, i64 %tid)")
            chain = chains.get(at)
            if chain is not None:
                self._chain(chain)
            else:
                self._note_time(2 * at)
                self._kernel(at, "%tid")
                self._note_time(2 * at + 1)
            at = at + 1 if chain is None else chain.stop
        if self.before:
            needed = f"  %needed = getelementptr i64, ptr %sync, i64 {NEEDED}"
            self._by_first_thread([needed, f"  store i64 {self.numbered}, ptr %needed"])
        before, after = _flush_denormals()
        self.declared |= {f"declare void @llvm.x86.sse.{name}mxcsr(ptr)" for name in ("st", "ld") if before}
        body = [*before, *self._head(), *self.lines, *after, "  ret void", "}"]
        # It only calls others: LLVM need not think about it for long.
        step = ["define void @step(ptr %args, ptr %sync, i64 %tid) nounwind noinline optnone {", "entry:", *body]
        waiting = [barrier_text(self.threads)] * (self.threads > 1) + [TAKE] * bool(self.before)
        return "\n".join([*sorted(self.declared), *waiting, *self.bodies, "\n".join(step)])

    def _head(self) -> list[str]:
        plan = self.plan
        head = ["  %arena = load ptr, ptr %args", f"  %pn = getelementptr i64, ptr %args, i64 {NUMBERS}"]
        head += ["  %numbers = load ptr, ptr %pn", f"  %ps = getelementptr i64, ptr %args, i64 {SCRATCH}"]
        head += ["  %all = load ptr, ptr %ps", f"  %own = mul i64 %tid, {plan.scratch_bytes}"]
        head += ["  %scratch = getelementptr i8, ptr %all, i64 %own", "  %first = icmp eq i64 %tid, 0"]
        for turn in (0, 1):
            at = self.threads * (plan.scratch_bytes + sum(plan.shared_bytes[:turn]))
            head.append(f"  %shared{turn} = getelementptr i8, ptr %all, i64 {at}")
        if plan.spans:
            head += ["  %steps = alloca i64"]
        if plan.chains:
            head += [f"  %handed = getelementptr i8, ptr %scratch, i64 {plan.packing_bytes}", "  %parts = alloca i64"]
        if self.before:
            head += [f"  %pb = getelementptr i64, ptr %sync, i64 {BEFORE}", "  %turn = load i64, ptr %pb", *self.before]
        if self.profiled:
            self.declared.add("declare i64 @llvm.readcyclecounter()")
            head += [f"  %pc = getelementptr i64, ptr %args, i64 {CLOCK}", "  %clock = load ptr, ptr %pc"]
        return head

    # ------------------------------------------------------------------------------------------------- kernels

    def _kernel(self, at: int, number: str, chain: Chain | None = None, now: str = "") -> None:
        """Call a kernel; `number` is that of the thread, or in a chain that of the batch; `now` is a loop's step."""
        lowered, places = self.kernels[at], self.plan.places[at]
        kernel = lowered.kernel
        if kernel.call is not None:
            self._python_call(kernel.call.number)
            return
        name = self._name(lowered)
        for row, length in enumerate(kernel.lengths or (None,)):
            part = slice(row * kernel.width, (row + 1) * kernel.width)
            first = starts(kernel)
            pointers = [
                self._pointer(node, place, number, chain, first.get(slot, 0) * node.dtype.itemsize, now)
                for slot, (node, place) in enumerate(zip(lowered.memory[part], places[part], strict=True))
            ]
            arguments = [*(f"ptr {p}" for p in pointers), "ptr %numbers", "ptr %scratch", f"i64 {number}"]
            arguments += [f"i64 {extra}" for extra in (length, first_draw(kernel)) if extra is not None]
            if kernel.steals(self.threads):
                arguments += ["ptr %sync", f"i64 {self._stealing(SPAN)}"]
            if kernel.tells(self.threads):
                arguments += ["ptr %sync", f"ptr %shared{self.told % 2}"]
                self.told += 1  # while the next such kernel tells, this one's may still be read
            call = f"  call void @{name}({', '.join(arguments)})"
            self._by_first_thread([call]) if is_serial(kernel) and self.threads > 1 else self.lines.append(call)

    def _stealing(self, pieces: int) -> str:
        """A number from which on a kernel's or chain's pieces are counted: above all of earlier ones."""
        name = f"%from{len(self.before)}"
        self.before.append(f"  {name} = add i64 %turn, {self.numbered}")
        self.numbered += pieces
        return name

    def _name(self, lowered: Lowered) -> str:
        """The function of a kernel, which is written where it is new."""
        key = identity(lowered.kernel)
        if key not in self.known:
            name = self.known[key] = f"k{len(self.known)}"
            write = self._emitter(lowered.kernel)
            text, needs = write(lowered.kernel, name, self.machine, self.threads)
            self.bodies.append(text.replace("define void", "define internal void"))
            self.declared |= needs
        return self.known[key]

    def _emitter(self, kernel: Kernel) -> Emitter:
        if kernel.product:
            return emit_product
        if kernel.tells(self.threads):
            return emit_parted
        return emit_turned if across(kernel) else emit

    def _pointer(self, node: Node, place: Place, number: str, chain: Chain | None, first: int, now: str) -> str:
        """Where the array of a node is, `first` bytes behind its beginning."""
        kind, offset = place
        whole = ""
        if kind == "piece":
            moving = self.plan.pieces[offset]
            whole = self._pointer(moving.stack, moving.whole, number, chain, first, now)
        at = f"%c{len(self.lines)}"
        if kind == "arena":
            self.lines.append(f"  {at} = getelementptr i8, ptr %arena, i64 {offset + first}")
        elif kind == "piece":
            moving = self.plan.pieces[offset]
            self.lines += [
                f"  {at}m = mul i64 {now}, {moving.piece.step}",
                f"  {at}n = add i64 {at}m, {moving.piece.first}",
                f"  {at}r = {'and' if moving.piece.turns else 'or'} i64 {at}n, {1 if moving.piece.turns else 0}",
                f"  {at}b = mul i64 {at}r, {moving.size}",
                f"  {at} = getelementptr i8, ptr {whole}, i64 {at}b",
            ]
        elif kind == "batch" and chain is not None:  # the kernel counts from the first batch, but there is one only
            self.lines.append(f"  {at}b = mul i64 {number}, {-(size_of(node) // chain.count)}")
            self.lines.append(f"  {at}o = add i64 {at}b, {offset + first}")
            self.lines.append(f"  {at} = getelementptr i8, ptr %handed, i64 {at}o")
        else:
            self.lines.append(f"  {at}p = getelementptr i64, ptr %args, i64 {word(place, self.graph)}")
            self.lines.append(f"  {at}s = load ptr, ptr {at}p")
            self.lines.append(f"  {at} = getelementptr i8, ptr {at}s, i64 {first}")
        return at

    def _by_first_thread(self, lines: list[str]) -> None:
        yes, after = f"do{len(self.lines)}", f"done{len(self.lines)}"
        self.lines += [f"  br i1 %first, label %{yes}, label %{after}", f"{yes}:", *lines]
        self.lines += [f"  br label %{after}", f"{after}:"]

    def _python_call(self, number: int) -> None:
        """Thread 0 calls Python, with numbers below 1e-38 as they are outside of a step."""
        modes = _flush_denormals()[0]
        lines = ["  call void @llvm.x86.sse.ldmxcsr(ptr %old)"] if modes else []
        lines += [f"  %at{number} = getelementptr i64, ptr %args, i64 {callback_word(self.graph)}"]
        lines += [f"  %python_function{number} = load ptr, ptr %at{number}"]
        lines += [f"  call void %python_function{number}(i64 {number})"]
        self._by_first_thread([*lines, *(["  call void @llvm.x86.sse.ldmxcsr(ptr %new)"] if modes else [])])

    # -------------------------------------------------------------------------------------------------- chains

    def _chain(self, chain: Chain) -> None:
        """This thread's batches, and what others have not begun of theirs, each through all kernels."""
        at, kernels = chain.first, range(chain.first, chain.stop)
        self._note_time(2 * at)
        for kernel in kernels:
            self._note_time(2 * kernel + 1, "i64 0")
        numbers = self._stealing(chain.count)
        ends = [f"  %share{at}{end} = mul i64 %of{at}{end}, {chain.count}" for end in "ab"]
        self.lines += [
            "  store i64 0, ptr %parts",
            f"  br label %part{at}",
            f"part{at}:",
            f"  %further{at} = load i64, ptr %parts",
            f"  %sum{at} = add i64 %tid, %further{at}",
            f"  %of{at}a = urem i64 %sum{at}, {self.threads}",
            f"  %of{at}b = add i64 %of{at}a, 1",
            *ends,
            f"  %low{at} = udiv i64 %share{at}a, {self.threads}",
            f"  %high{at} = udiv i64 %share{at}b, {self.threads}",
            f"  %count{at} = sub i64 %high{at}, %low{at}",
            f"  br label %look{at}",
            f"look{at}:",
            f"  %taken{at} = call i64 @take(ptr %sync, i64 %of{at}a, i64 {numbers}, i64 %count{at})",
            f"  %b{at} = add i64 %low{at}, %taken{at}",
            f"  %some{at} = icmp sge i64 %taken{at}, 0",
            f"  br i1 %some{at}, label %chain{at}, label %next{at}",
            f"chain{at}:",
        ]
        for kernel in kernels:
            start = self._time()
            self._kernel(kernel, f"%b{at}", chain)
            self._add_time(2 * kernel + 1, start)
        self.lines += [f"  br label %look{at}", f"next{at}:"]
        self._again(at, f"%further{at}", "%parts", str(self.threads), f"%part{at}")
        self._lay_out_times(kernels)

    def _again(self, at: int, number: str, counter: str, limit: str, begin: str) -> None:
        """The end of a loop: count on, and go to its beginning unless the limit is reached."""
        self.lines += [
            f"  %after{at} = add i64 {number}, 1",
            f"  store i64 %after{at}, ptr {counter}",
            f"  %more{at} = icmp ult i64 %after{at}, {limit}",
            f"  br i1 %more{at}, label {begin}, label %end{at}",
            f"end{at}:",
        ]

    # --------------------------------------------------------------------------------------------------- loops

    def _loop(self, span: Span) -> None:
        """All steps, each of which is all kernels."""
        at, kernels = span.first, range(span.first, span.stop)
        self._note_time(2 * at)
        for kernel in kernels:
            self._note_time(2 * kernel + 1, "i64 0")
        self.lines += ["  store i64 0, ptr %steps", f"  br label %loop{at}", f"loop{at}:"]
        self.lines += [f"  %now{at} = load i64, ptr %steps"]
        for kernel in kernels:
            if self.plan.barriers[kernel] and self.threads > 1:
                self.lines.append("  call void @barrier(ptr %sync, i64 %tid)")
            start = self._time()
            self._kernel(kernel, "%tid", now=f"%now{at}")
            self._add_time(2 * kernel + 1, start)
        self._again(at, f"%now{at}", "%steps", str(span.length), f"%loop{at}")
        self._lay_out_times(kernels)

    # ----------------------------------------------------------------------------------------------------- time

    def _time(self) -> str:
        name = f"%t{len(self.lines)}"
        if self.profiled:
            self.lines.append(f"  {name} = call i64 @llvm.readcyclecounter()")
        return name

    def _word(self, number: int) -> str:
        """Word `number` of this thread's part of the profile: two for each kernel, when it began and when it ended."""
        name = f"%q{len(self.lines)}"
        self.lines += [
            f"  {name}o = mul i64 %tid, {2 * len(self.kernels) + 1}",
            f"  {name}a = add i64 {name}o, {number}",
            f"  {name} = getelementptr i64, ptr %clock, i64 {name}a",
        ]
        return name

    def _note_time(self, number: int, value: str = "") -> None:
        if self.profiled:
            value = value or f"i64 {self._time()}"
            self.lines.append(f"  store {value}, ptr {self._word(number)}")

    def _add_time(self, number: int, start: str) -> None:
        if self.profiled:
            stop, place = self._time(), self._word(number)
            self.lines += [
                f"  {place}s = sub i64 {stop}, {start}",
                f"  {place}l = load i64, ptr {place}",
                f"  {place}n = add i64 {place}l, {place}s",
                f"  store i64 {place}n, ptr {place}",
            ]

    def _lay_out_times(self, kernels: range) -> None:
        """The times of a chain's kernels, of all batches, as if each had passed over all before the next."""
        for kernel in kernels if self.profiled else ():
            begin, end = self._word(2 * kernel), self._word(2 * kernel + 1)
            self.lines += [
                f"  {begin}l = load i64, ptr {begin}",
                f"  {end}l = load i64, ptr {end}",
                f"  {end}n = add i64 {begin}l, {end}l",
                f"  store i64 {end}n, ptr {end}",
            ]
            if kernel + 1 < kernels.stop:
                self.lines.append(f"  store i64 {end}n, ptr {self._word(2 * kernel + 2)}")
