"""What a step of a loop does, from the text of a program that XLA has optimised: bytes, kernels, copies.

Knows the text only, no JAX. XLA's own cost analysis gives nothing for a GPU that is not there; for a TPU it counts what
stays in the fast memory on the chip as if it crossed the memory bus, and a table of which a few rows are looked up as
if it were read whole.

What is counted:

- An operation of the body is one launch, unless it only renames memory (`RENAMES`). A loop inside the body launches
  what its own body and condition launch, as often as it turns.
- A launch reads each operand once, however many of its threads do: what is read again comes from the GPU's cache. Of
  an operand that is only sliced or gathered from, it reads what is taken; of one that is updated in place, nothing.
- It writes its results once; of an array updated in place, the update.
- On a TPU, what lies in the memory on the chip, space S(1), costs nothing. A fetch into it reads what is fetched, once,
  and what is written back from it is written.
- cuBLAS's workspace does not count. What is held in registers inside a fusion does not either.
"""

import collections
import dataclasses
import math
import re

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
ITEM_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
RENAMES = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all"}
PICKS = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Which operand is written into operand 0, in place."""

EXCHANGES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}

BIG = 1_000_000


@dataclasses.dataclass(frozen=True)
class Array:
    kind: str
    elements: int
    on_chip: bool
    text: str

    @property
    def whole(self) -> int:
        """In bytes."""
        return self.elements * ITEM_BYTES.get(self.kind, 0)

    @property
    def size(self) -> int:
        """In bytes of the main memory."""
        return 0 if self.on_chip else self.whole


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation; `arrays` are its results, several if it gives a tuple."""

    name: str
    opcode: str
    shape: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    @property
    def size(self) -> int:
        return sum(array.size for array in self.arrays)

    def called(self, attribute: str) -> str:
        """The name of a computation that it runs, such as `calls` of a fusion."""
        return re.search(rf"\b{attribute}=(%[\w.\-]+)", self.attributes)[1]


Computation = dict[str, Operation]
"""By name, in order; the root is the last one."""

Program = dict[str, Computation]


# --- Reading ---------------------------------------------------------------------------------------------------------


def parse(hlo: str) -> Program:
    """The computations of a program; the root is moved to the end of each."""
    program = {}
    for name, lines in re.findall(r"^(?:ENTRY )?(%[\w.\-]+) \(.*?\{\n(.*?)^\}", hlo, flags=re.MULTILINE | re.DOTALL):
        operations = [_operation(line) for line in lines.splitlines() if " = " in line]
        operations.sort(key=lambda pair: pair[0])  # stable, and False comes first
        program[name] = {operation.name: operation for _, operation in operations}
    return program


def _operation(line: str) -> tuple[bool, Operation]:
    """Whether it is the root, and the operation."""
    root, name, rest = re.match(r"\s*(ROOT )?(%\S+) = (.*)", line).groups()
    shape = rest[: _closing(rest)] if rest.startswith("(") else rest[: rest.index(" ")]
    rest = rest[len(shape) + 1 :]
    start = rest.index("(")
    end = start + _closing(rest[start:])
    opcode, inner = rest[:start], rest[start + 1 : end - 1]
    literal = opcode in ("parameter", "constant")
    operands = (inner,) if literal else tuple(re.findall(r"%[\w.\-]+", inner))
    arrays = tuple(
        Array(kind, math.prod(int(size) for size in sizes.split(",") if size), "S(" in layout, f"{kind}[{sizes}]")
        for kind, sizes, layout in re.findall(r"\b([a-z]+[0-9]*)\[([\d,]*)\](\{[^}]*\})?", shape)
    )
    shape = re.sub(r"\{.*?\}|/\*.*?\*/", "", shape)
    return bool(root), Operation(name, opcode, shape, arrays, operands, rest[end:])


def _closing(text: str) -> int:
    """Where the parenthesis that `text` begins with is closed again, one further."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")


# --- Bytes -----------------------------------------------------------------------------------------------------------


def bytes_read(program: Program, computation: Computation, name: str) -> int:
    """What a computation reads of one of its arrays."""
    whole = computation[name].size
    total = 0
    for user in computation.values():
        for place, operand in enumerate(user.operands):
            if operand == name and user.opcode not in ("parameter", "constant"):
                total += _read_by(program, computation, user, place)
    return min(total, whole)


def _read_by(program: Program, computation: Computation, user: Operation, place: int) -> int:
    if user.opcode == "bitcast":
        return bytes_read(program, computation, user.name)
    if user.opcode.endswith("-done"):
        return 0
    if not computation[user.operands[place]].size:
        return 0
    if user.opcode == "slice-start":  # its results are the source, what is fetched, and a flag
        return user.arrays[1].whole
    if user.opcode == "fusion":
        called = program[user.called("calls")]
        parameter = next(op.name for op in called.values() if op.opcode == "parameter" and op.operands == (str(place),))
        root = list(called.values())[-1]
        while root.opcode == "bitcast":
            root = called[root.operands[0]]
        if root.name == parameter:  # another name for it
            return bytes_read(program, computation, user.name)
        return min(bytes_read(program, called, parameter), computation[user.operands[place]].size)
    if user.opcode in PICKS and place == 0:
        return sum(array.whole for array in user.arrays)
    if user.opcode == "tuple" or (user.opcode in UPDATES and place == 0):
        return 0
    return computation[user.operands[place]].size


def arrays_written(program: Program, computation: Computation, operation: Operation) -> list[Array]:
    """What an operation writes: of an array that is updated in place, the update; nothing for one that is passed on."""
    if operation.opcode == "fusion":
        called = program[operation.called("calls")]
        return arrays_written(program, called, list(called.values())[-1])
    if operation.opcode.endswith("-done"):
        return []
    if operation.opcode == "copy-start":  # its results are the target, the source, and a flag
        return [operation.arrays[0]]
    if operation.opcode == "slice-start":
        return [operation.arrays[1]]
    if operation.opcode in ("bitcast", "tuple"):
        return [a for name in operation.operands for a in arrays_written(program, computation, computation[name])]
    if operation.opcode in UPDATES:
        return list(computation[operation.operands[UPDATES[operation.opcode]]].arrays)
    if operation.opcode == "parameter":
        return []
    if operation.opcode == "custom-call":
        return [array for array in operation.arrays if array.kind != "s8"]  # that is the workspace
    return list(operation.arrays)


# --- A step ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Step:
    """What one turn of the loop does.

    Attributes:
        moved: bytes read and written.
        written_back: of these, bytes copied from the chip's memory, in arrays of 1 MB or more.
        exchanges: between devices: how many of each kind and shape, and the bytes of one.
        kernels: launches of each kind, see `launch_kind`.
        copies: operations that write a whole self-attention cache: name, shape, bytes.
        relayouts: operations that read a weight only to write it in another layout or dtype: name, shape, bytes.
    """

    moved: int = 0
    written_back: int = 0
    exchanges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    kernels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    copies: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    relayouts: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)

    def add(self, other: "Step", times: int) -> None:
        self.moved += times * other.moved
        self.written_back += times * other.written_back
        for kind, (count, size) in other.exchanges.items():
            self.exchanges[kind] = self.exchanges.get(kind, (0, 0))[0] + times * count, size
        for kind, count in other.kernels.items():
            self.kernels[kind] += times * count
        self.copies += other.copies
        self.relayouts += other.relayouts


def step_of(hlo: str, *, cache_elements: int) -> Step:
    """One turn of the program's longest loop, its condition included.

    Args:
        hlo: the optimised program.
        cache_elements: of the keys of one layer.
    """
    program = parse(hlo)
    loops = [op for computation in program.values() for op in computation.values() if op.opcode == "while"]
    loop = max(loops, key=lambda op: len(program[op.called("body")]))
    step = _account(program, program[loop.called("body")], cache_elements)
    step.add(_account(program, program[loop.called("condition")], cache_elements), 1)
    return step


def _account(program: Program, computation: Computation, cache_elements: int) -> Step:
    step = Step()
    for op in computation.values():
        if op.opcode in RENAMES:
            continue
        if op.opcode == "while":
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.attributes)
            for part in ("body", "condition"):
                step.add(_account(program, program[op.called(part)], cache_elements), int(trips[1]) if trips else 1)
            continue
        written = arrays_written(program, computation, op)
        step.kernels[launch_kind(program, op)] += 1
        step.moved += sum(array.size for array in written)
        step.moved += sum(_read_by(program, computation, op, place) for place in range(len(op.operands)))
        moved = (op.name, op.shape, sum(array.size for array in written))
        if (kind := op.opcode.removesuffix("-start")) in EXCHANGES:
            largest = max(op.arrays, key=lambda array: array.elements)
            name = f"{kind} {largest.text}"
            step.exchanges[name] = step.exchanges.get(name, (0, 0))[0] + 1, largest.whole
        elif op.opcode == "copy-start" and not computation[op.operands[0]].size:
            step.written_back += moved[2] if moved[2] >= BIG else 0
        elif any(array.elements == cache_elements and not array.on_chip for array in written):
            step.copies.append(moved)
        elif _lays_out_anew(program, computation, op, written):
            step.relayouts.append(moved)
    return step


def _lays_out_anew(program: Program, computation: Computation, op: Operation, written: list[Array]) -> bool:
    """Whether `op` reads a big array that the loop carries and, computing nothing, writes as many elements again."""
    if op.opcode == "custom-call" or _opcodes(program, op) & {"dot", "reduce"}:
        return False
    for name in op.operands:
        source = computation[name]
        while source.opcode == "bitcast":
            source = computation[source.operands[0]]
        if source.opcode == "get-tuple-element" and computation[source.operands[0]].opcode == "parameter":
            large = source.size >= BIG and bytes_read(program, computation, name) == source.size
            if large and any(a.elements >= source.arrays[0].elements and not a.on_chip for a in written):
                return True
    return False


def launch_kind(program: Program, op: Operation) -> str:
    """What is launched, in words."""
    if op.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]+)"', op.attributes)[1]
        return "cuBLAS" if "cublas" in target else target
    if op.opcode != "fusion":
        return op.opcode
    inside = _opcodes(program, op)
    kind = re.search(r"\bkind=k(\w+)", op.attributes)[1]
    if '"kind":"__triton' in op.attributes:
        return "Triton product" if "dot" in inside else "Triton"
    special = [opcode for opcode in ("sort", "scatter", "dynamic-update-slice") if opcode in inside]
    if kind == "Input":
        special += [opcode for opcode in ("reduce", "concatenate", "transpose") if opcode in inside]
    return [*special, kind.lower()][0]


def _opcodes(program: Program, op: Operation) -> set[str]:
    """Of an operation and all that is fused into it."""
    if op.opcode != "fusion":
        return {op.opcode}
    return {opcode for inner in program[op.called("calls")].values() for opcode in _opcodes(program, inner)}


# --- Command buffers -------------------------------------------------------------------------------------------------


def launches_by_buffer(thunks: str) -> dict[str, int]:
    """Of the launches of the longest loop's body, how many are recorded in a command buffer (a CUDA graph).

    XLA decides it after the HLO, on its list of launches ("thunks"): `thunks` is what `xla_dump_to` leaves as
    *.thunk_sequence_after_thunk_passes.txt, a tree by indentation.

    Returns:
        buffers: command buffers, each one launch for the host.
        inside: launches in them.
        outside: the others.
    """
    best = {"buffers": 0, "inside": 0, "outside": 0}
    lines = thunks.splitlines()
    for start, line in enumerate(lines):
        if line.strip() != "body:":
            continue
        depth = len(line) - len(line.lstrip())
        counts = dict.fromkeys(best, 0)
        buffer_depth = None
        for text in lines[start + 1 :]:
            here = len(text) - len(text.lstrip())
            if here <= depth:
                break
            match = re.match(r"\s*\d+: (k\w+)", text)
            if not match:
                continue
            if buffer_depth is not None and here <= buffer_depth:
                buffer_depth = None
            if match[1] == "kCommandBuffer":
                buffer_depth = here
                counts["buffers"] += 1
            else:
                counts["outside" if buffer_depth is None else "inside"] += 1
        if sum(counts.values()) > sum(best.values()):
            best = counts
    return best
