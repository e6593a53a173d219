"""Reads a compiled program: what it moves between devices, multiplies, and estimates.

In: the text of a program that XLA has compiled for TPUs, which is that of one device.
Out: its operations, each with how often a step runs it. The body of a loop counts as
often as the loop runs.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(
    r"^  (?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$"
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation."""

    name: str
    kind: str  # `dot`, `fusion`, `all-gather` ...
    result: str  # types and shapes, as XLA writes them
    rest: str  # operands and attributes
    computation: str
    n_runs: int = 1  # in a step

    @property
    def result_bytes(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(
            _BYTES.get(dtype, 0) * math.prod(map(int, filter(None, sizes.split(","))))
            for dtype, sizes in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", self.result))
        )

    @property
    def estimated_cycles(self) -> int:
        """The compiler's estimate for one run; 0 where it gives none."""
        found = _CYCLES.search(self.rest)
        return int(found[1]) if found else 0

    @property
    def path(self) -> str:
        """Where in the trainer's code it comes from, as JAX names it."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""


Rounds = Mapping[int, int]  # rounds of a loop to those that it is counted as


def operations(program: str, rounds: Rounds | None = None) -> list[Operation]:
    """Returns all operations that a step runs, those inside of fusions included.

    With `rounds`, loops count as longer ones: the program of a model with few layers,
    in a loop, tells of one with many.
    """
    by_computation: dict[str, list[Operation]] = {}
    entry = current = ""
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            by_computation[current] = []
            entry = current if head[1] else entry
        elif operation := _OPERATION.match(line):
            name, result, kind, rest = operation.groups()
            by_computation[current].append(Operation(name, kind, result, rest, current))
    counts = _runs(entry, by_computation, rounds or {})
    return [
        dataclasses.replace(operation, n_runs=counts[name])
        for name, own in by_computation.items()
        if counts[name]
        for operation in own
    ]


def _runs(
    entry: str, by_computation: Mapping[str, list[Operation]], rounds: Rounds
) -> Mapping[str, int]:
    """How often a step runs each computation."""
    counts: dict[str, int] = collections.Counter({entry: 1})
    # XLA writes a computation before those that call it.
    for name in reversed(list(by_computation)):
        for operation in by_computation[name]:
            n = _n_rounds(operation, by_computation)
            n = rounds.get(n, n)
            for called in _CALLED.findall(operation.rest):
                counts[called] += n * counts[name]
    return counts


def _n_rounds(
    operation: Operation, by_computation: Mapping[str, list[Operation]]
) -> int:
    """Rounds of a loop: the number that its counter, from 0, is compared with."""
    if operation.kind != "while":
        return 1
    condition = re.search(r"condition=%?([\w.-]+)", operation.rest)
    if condition is None:
        raise ValueError(f"{operation.name}: expected a loop with a condition")
    numbers = [
        int(found[0])
        for one in by_computation[condition[1]]
        if one.kind == "constant" and (found := re.findall(r"^(\d+)\)", one.rest))
    ]
    if len(numbers) != 1:
        raise ValueError(f"{operation.name}: expected one constant in its condition")
    return numbers[0]


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices."""

    kind: str
    n_devices: int  # that exchange with each other
    sent_bytes: float  # by each device in a step, with the algorithm of a ring
    path: str
    shape: str


def collectives(program: str, rounds: Rounds | None = None) -> Iterator[Collective]:
    """Yields the exchanges of a step; `rounds` are those of `operations`.

    With n devices in a ring each sends (n - 1) / n of what is gathered or scattered,
    and twice that of what is reduced.
    """
    for operation in operations(program, rounds):
        kind = operation.kind.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        n_bytes = operation.result_bytes
        if operation.kind.endswith("-start"):
            n_bytes //= 2  # operand and result
        n, factor = _group_size(operation.rest), 1.0
        if operation.computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # TPUs write it as a fusion of both
        elif kind == "all-reduce":
            factor = 2.0
        elif kind == "reduce-scatter":
            factor = n  # the result is one part
        share = 1.0 if kind == "collective-permute" else (n - 1) / n
        sent = factor * share * n_bytes * operation.n_runs
        yield Collective(kind, n, sent, operation.path, operation.result)


def _group_size(rest: str) -> int:
    """The number of devices of a group, in each of XLA's three notations."""
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=mesh\[(.*?)\].*? \{('[^}]*)\}", rest):
        sizes = dict(re.findall(r"('\w+')=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in found[2].split(","))
    return 2  # a permutation


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product, or a convolution."""

    factors: tuple[str, ...]  # their types
    path: str


def products(program: str) -> Iterator[Product]:
    """Yields the matrix products of a step."""
    found = operations(program)
    place_to_type = {
        (one.computation, one.name): one.result.partition("[")[0] for one in found
    }
    for one in found:
        if one.kind in ("dot", "convolution"):
            names = re.findall(r"%([\w.-]+)", one.rest.partition(")")[0])
            factors = [place_to_type.get((one.computation, name), "") for name in names]
            yield Product(tuple(factors), one.path)
