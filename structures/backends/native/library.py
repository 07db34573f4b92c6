"""The native library by ctypes: record layouts, signatures, and programs opened in it.

Every pointer is passed as an integer (`Tensor.data_ptr()`), or None for what is absent. A call returns 0, or the
number of an error that `explain` puts into a sentence.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from structures.backends.native.lower import Lowered, Program

SOURCE = Path(__file__).parent / "source"
MAIN = SOURCE / "native.cpp"  # the one translation unit; it includes the others
VERSION = 2  # of the records below; the same number stands in source/program.h

DTYPES = {"float32": 0, "bfloat16": 1}
ROWS, TILES = 1, 2  # the two ways to run a call: few tokens, many tokens
CANONICAL, PAIRS, PAIRS_BACK = 1, 2, 4  # kinds of copies of the factors that a caller may keep
TILE_TOKENS = (16, 32, 64, 128)

_Pointer, _Int, _Long = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class StepRecord(ctypes.Structure):
    """`Step` of source/program.h: one batched product as offset tables."""

    _fields_ = (
        *((name, _Long) for name in ("entries", "cols", "contracted", "blocks", "a_stride", "c_stride")),
        *((name, _Pointer) for name in ("a_base", "a_off", "c_base", "c_off", "w_base", "w_k", "w_m", "block")),
        *((name, _Int) for name in ("factor", "source", "target", "add")),
    )


class ProgramRecord(ctypes.Structure):
    """`Description` of source/program.h: a structure's steps in both layouts of the intermediates."""

    _fields_ = (
        *((name, _Int) for name in ("size", "version", "dtype", "factors")),
        *((name, _Int) for name in ("tile_steps", "tile_buffers", "row_steps", "row_buffers")),
        *((name, _Pointer) for name in ("tile", "tile_sizes", "row", "row_sizes", "factor_numbers")),
    )


class PlanRecord(ctypes.Structure):
    """`Plan` of source/program.h: how a call runs."""

    _fields_ = (*((name, _Int) for name in ("path", "tile", "split", "threads", "needs", "chunk")),)


class RuntimeRecord(ctypes.Structure):
    """`Runtime` of source/threads.h: entry points of the OpenMP runtime that the process has."""

    _fields_ = tuple((name, _Pointer) for name in ("parallel", "barrier", "thread", "team", "in_parallel"))


class RoutedRecord(ctypes.Structure):
    """`Routed` of source/routed.h: the experts that tokens chose, and which factors are each expert's own."""

    _fields_ = (
        *((name, _Pointer) for name in ("chosen", "weights", "own")),
        *((name, _Long) for name in ("experts", "active")),
    )


_OPENMP = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads", "omp_in_parallel")

# What the library exports. Each name is an attribute of `Library`, called with plain integers.
SIGNATURES: Mapping[str, tuple[type | None, tuple[type, ...]]] = {
    "version": (_Int, ()),
    # size of a record by its number: 0 Step, 1 Description, 2 Plan, 3 Runtime, 4 Routed
    "record_size": (_Int, (_Int,)),
    "vector": (_Int, ()),  # numbers of a vector: 16, 8 or 4
    "pairs": (_Int, ()),  # 1 where the processor multiplies pairs of bfloat16
    "set_runtime": (None, (_Pointer,)),
    # bytes of cache: L1 and L2 a core, L3 a thread may count on
    "set_caches": (None, (_Long, _Long, _Long)),
    "release": (None, ()),  # frees the scratch of the calling thread
    "scratch_bytes": (_Long, ()),  # scratch that all threads hold now
    "open": (_Pointer, (_Pointer,)),  # Description -> program, NULL if it is refused
    "close": (None, (_Pointer,)),
    # program, tokens, threads, keeps (kinds of copies the caller keeps), backward -> Plan written to the last argument
    "plan": (None, (_Pointer, _Long, _Int, _Int, _Int, _Pointer)),
    "copies_bytes": (_Long, (_Pointer, _Int)),  # program, kind
    # program, kind, factors, copies, threads
    "make_copies": (_Int, (_Pointer, _Int, _Pointer, _Pointer, _Int)),
    # program, factors, copies, x, row stride of x, tokens, bias, y, threads, how
    "forward": (
        _Int,
        (_Pointer, _Pointer, _Pointer, _Pointer, _Long, _Long, _Pointer, _Pointer, _Int, _Long),
    ),
    # program, factors, copies, x, its row stride, dy, its row stride, tokens, dx, dfactors, dbias, threads, how
    "backward": (
        _Int,
        (
            *(_Pointer, _Pointer, _Pointer, _Pointer, _Long, _Pointer, _Long, _Long),
            *(_Pointer, _Pointer, _Pointer, _Int, _Long),
        ),
    ),
    # program, Routed, factors, copies (PAIRS of each expert), x, its row stride, tokens, bias, y, threads
    "forward_experts": (
        _Int,
        (_Pointer, _Pointer, _Pointer, _Pointer, _Pointer, _Long, _Long, _Pointer, _Pointer, _Int),
    ),
    # program, Routed, factors, x, its row stride, dy, its row stride, tokens, dx, dfactors, dweights, threads
    "backward_experts": (
        _Int,
        (
            *(_Pointer, _Pointer, _Pointer, _Pointer, _Long, _Pointer, _Long, _Long),
            *(_Pointer, _Pointer, _Pointer, _Int),
        ),
    ),
    # loops that measure this machine, each for about so many seconds: FLOP/s, bytes/s, bytes/s of one thread
    "measure_products": (ctypes.c_double, (ctypes.c_double, _Int)),  # seconds, dtype
    "measure_transposes": (ctypes.c_double, (ctypes.c_double,)),
    "measure_reads": (ctypes.c_double, (ctypes.c_double, _Long)),  # seconds, bytes of the array that is read
}

_ERRORS = {
    1: "no memory for the scratch of this call",
    2: "the copies of the factors that this way of running needs were not handed over",
    3: "this way of running is not possible for this program",
}


@dataclass(frozen=True)
class Plan:
    """How one call runs: by rows or tiles, in tiles of so many tokens, on so many threads."""

    path: int  # ROWS or TILES
    tile: int  # tokens of a tile; 0 for rows
    split: bool  # one tile's steps are split over the threads, for want of tiles
    threads: int
    needs: int  # the kind of kept copies that this way takes, 0 for none
    chunk: int = 0  # tokens between which a backward's factors get their gradients

    @property
    def how(self) -> int:
        """The number that asks `forward` or `backward` for exactly this."""
        return how(self.path, self.tile, split=self.split)

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.path == ROWS:
            return f"rows on {threads}"
        return f"tiles of {self.tile} tokens on {threads}" + (", each split over them" if self.split else "")


def how(path: int, tile: int = 0, *, split: bool = False, chunk: int = 0) -> int:
    """The last argument of `forward` and `backward`: 0 lets the library choose, this asks for one way.

    Args:
        tile: tokens of a tile, one of TILE_TOKENS.
        chunk: tokens of a chunk of the backward, a multiple of `tile`; 0 lets the library choose.
    """
    return path | tile << 8 | int(split) << 20 | chunk << 24


class Library:
    """The shared object, loaded: its exported functions are attributes, named as in `SIGNATURES`.

    Loading checks version and record sizes, and hands over the OpenMP runtime that torch has loaded, and cache sizes.
    Functions release the GIL. Scratch belongs to the calling thread, grows, and is freed by `release()`.

    Raises:
        OSError: the file is no shared object.
        ValueError: it was built from other source than this.
    """

    # functions of SIGNATURES that callers use; each is a ctypes function
    vector: Callable[[], int]
    pairs: Callable[[], int]
    release: Callable[[], None]
    scratch_bytes: Callable[[], int]
    copies_bytes: Callable[[int, int], int]
    make_copies: Callable[..., int]
    forward: Callable[..., int]
    backward: Callable[..., int]
    forward_experts: Callable[..., int]
    backward_experts: Callable[..., int]
    measure_products: Callable[[float, int], float]
    measure_transposes: Callable[[float], float]
    measure_reads: Callable[[float, int], float]

    def __init__(self, path: str | Path, *, openmp: ctypes.CDLL | None = None) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)
        for name, (result, arguments) in SIGNATURES.items():
            try:
                function = getattr(self._library, f"structures_{name}")
            except AttributeError as error:
                raise ValueError(f"{self.path}: has no structures_{name}; it was built from other source") from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self._check()
        self.threaded = self._hand_over(openmp)
        self._library.structures_set_caches(*caches())

    def _check(self) -> None:
        found = self._library.structures_version()
        if found != VERSION:
            raise ValueError(f"{self.path}: version {found} of the native library; this is version {VERSION}")
        for number, record in enumerate((StepRecord, ProgramRecord, PlanRecord, RuntimeRecord, RoutedRecord)):
            size = self._library.structures_record_size(number)
            if size != ctypes.sizeof(record):
                raise ValueError(f"{self.path}: {record.__name__} has {size} bytes, not {ctypes.sizeof(record)}")

    def _hand_over(self, openmp: ctypes.CDLL | None) -> bool:
        """Whether the runtime was found; without it every call runs on one thread."""
        if openmp is None:
            return False
        try:
            pointers = [ctypes.cast(getattr(openmp, name), _Pointer).value for name in _OPENMP]
        except AttributeError:
            return False
        self._library.structures_set_runtime(ctypes.byref(RuntimeRecord(*pointers)))
        return True

    def stay_on_one_thread(self) -> None:
        """Use no OpenMP runtime from here on."""
        self.threaded = False
        self._library.structures_set_runtime(ctypes.byref(RuntimeRecord()))


def torch_openmp() -> ctypes.CDLL | None:
    """The handle through which torch's own OpenMP runtime is found, whatever it is called; None where there is none.

    A symbol looked up in the handle of torch's CPU library is looked up in what that library depends on.
    """
    import torch

    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so",):
        if (folder / name).exists():
            return ctypes.CDLL(str(folder / name))
    return None


def caches() -> tuple[int, int, int]:
    """Bytes of L1 data and L2 cache a core, and of L3; usual sizes where the system does not tell."""
    found = {1: 32 << 10, 2: 1 << 20, 3: 16 << 20}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level = (index / "type").read_text().strip(), int((index / "level").read_text())
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        if kind != "Instruction" and level in found and size[-1:] in "KM" and size[:-1].isdecimal():
            found[level] = int(size[:-1]) << (10 if size[-1] == "K" else 20)
    return found[1], found[2], found[3]


class Bound:
    """A structure's program opened in the library, for one dtype: `address` is what the functions take first.

    It is shared by all layers of one structure and dtype; it holds no factor. It keeps its tables alive, and closes
    the program when it goes.

    Raises:
        ValueError: the library refuses the program (a table, buffer or factor of 2^31 numbers or more).
    """

    def __init__(self, library: Library, lowered: Lowered, dtype: str) -> None:
        self.library, self.lowered, self.dtype = library, lowered, dtype
        self._kept: list[object] = []
        record = ProgramRecord(size=ctypes.sizeof(ProgramRecord), version=VERSION, dtype=DTYPES[dtype])
        numbers = lowered.factor_numbers
        record.factors, record.factor_numbers = len(numbers), self._array(_Long, numbers)
        for name, program in (("tile", lowered.tiles), ("row", lowered.rows)):
            setattr(record, f"{name}_steps", len(program.steps))
            setattr(record, f"{name}_buffers", len(program.sizes))
            setattr(record, name, self._steps(program))
            setattr(record, f"{name}_sizes", self._array(_Long, program.sizes))
        address = library._library.structures_open(ctypes.byref(record))
        if not address:
            raise ValueError("the native library refused the program: a table, buffer or factor is too large")
        self.address: int = address
        self._closer = weakref.finalize(self, library._library.structures_close, address)
        self.pointers = _Pointer * len(numbers)  # the type of `factors` in calls

    def _array(self, kind: type[ctypes._SimpleCData[int]], values: Sequence[int]) -> int:
        array = (kind * len(values))(*values)
        self._kept.append(array)
        return ctypes.addressof(array)

    def _steps(self, program: Program) -> int:
        records = (StepRecord * len(program.steps))()
        for record, step in zip(records, program.steps, strict=True):
            tables = {
                "a_base": step.a.base,
                "a_off": step.a.offsets,
                "c_base": step.c.base,
                "c_off": step.c.offsets,
                "w_base": step.w_base,
                "w_k": step.w_contracted,
                "w_m": step.w_cols,
                "block": step.block,
            }
            for name, table in tables.items():
                self._kept.append(table)
                setattr(record, name, table.address)
            record.entries, record.cols, record.contracted = step.entries, step.cols, step.contracted
            record.blocks, record.a_stride, record.c_stride = step.blocks, step.a.stride, step.c.stride
            record.factor, record.source, record.target = step.factor, step.source, step.target
            record.add = int(step.add)
        self._kept.append(records)
        return ctypes.addressof(records)

    def plan(self, tokens: int, threads: int, *, keeps: int = 0, backward: bool = False) -> Plan:
        """How a call of so many tokens runs.

        Args:
            keeps: kinds of copies that the caller is willing to keep and hand over, CANONICAL | PAIRS.
            backward: the gradients, not the value.
        """
        record = PlanRecord()
        library = self.library._library
        library.structures_plan(self.address, tokens, threads, keeps, int(backward), ctypes.byref(record))
        return Plan(record.path, record.tile, bool(record.split), record.threads, record.needs, record.chunk)

    def copies_bytes(self, kind: int) -> int:
        """Bytes of the copies of one kind; 0 where this program takes none."""
        return self.library.copies_bytes(self.address, kind)


def explain(code: int) -> str:
    """What the number that a call returned means."""
    return _ERRORS.get(code, f"error {code}")
