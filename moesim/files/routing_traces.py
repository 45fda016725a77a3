"""Routing traces: choices or expert counts of a run, read and written piece by piece.

A trace is a Parquet file with one row a token (column `choices`, layers x topk numbers) or one row a batch (column
`counts`, layers x experts numbers), and `layers`, `experts`, `topk` among its metadata. Engines' own arrays are read as
they are: an `.npy` file by memory map, a JSON file of counts whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Integer

from moesim.files.trees import Tree
from moesim.ground.errors import Fault, WorkloadError
from moesim.world.tracing import Description, Shape, describe_choices, describe_counts

ROWS = 4096
"""Rows of a piece: of 61 layers and 8 choices, 4 MB."""

_MOST_EXPERTS = 4096
"""Beyond this, tables of which expert follows which would fill the memory."""

Piece = Integer[np.ndarray, "row layer number"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace that can be read piece by piece, any number of times.

    `pieces` yields choices `[token layer topk]` where the shape has a `topk`, else counts `[batch layer expert]`.
    """

    file: str
    shape: Shape
    rows: int
    pieces: Callable[[], Iterator[Piece]]

    def description(self, batch: int) -> Description:
        """Describe the trace, in one reading; choices are taken `batch` tokens at a time."""
        if self.shape.topk:
            return describe_choices(self.pieces(), self.shape, batch)
        return describe_counts(self.pieces(), self.shape)


def open_trace(path: Path, *, experts: int = 0) -> Trace:
    """Open a trace of any known form.

    ==========  ============================================================================================
    `.parquet`  moesim's own, as written by `write_choices`, `write_counts` and the recorder
    `.npy`      counts `[batch layer expert]` or `[layer expert]` (EPLB's weights; SGLang's `logical_count`,
                saved by NumPy), or choices `[token layer topk]` (vLLM's and SGLang's routed experts) where
                `experts` says how many there are
    `.json`     counts, nested lists or a section with `logical_count` (SGLang's expert locations)
    ==========  ============================================================================================

    Raises
    ------
    WorkloadError
        No such file, another form, or numbers that are no counts or choices.
    """
    forms = {".parquet": _parquet, ".npy": _numpy, ".json": _json}
    label = str(path)
    if path.suffix == ".pt":
        remedy = "turn it into .npy where PyTorch is: `moesim.calibrate.record.convert(FILE, OUT)`"
        raise _refused(label, "is PyTorch's own form, which moesim does not read", remedy)
    if path.suffix not in forms:
        raise _refused(label, "is no known form of a trace", f"give one of {', '.join(forms)}")
    if not path.is_file():
        raise _refused(label, "there is no such file", "check the path")
    try:
        return forms[path.suffix](path, experts)
    except _UNREADABLE as flaw:
        raise _damaged(label, flaw) from None


class TraceWriter:
    """Writes a trace piece by piece; the file appears, whole, when the writer's block ends well.

    Parameters
    ----------
    path : Path
        A new or old file; a failed write leaves it as it was.
    experts : int
        Experts per layer, where pieces are choices `[token layer topk]`; 0 where they are counts
        `[batch layer expert]`.
    """

    def __init__(self, path: Path, experts: int = 0) -> None:
        self.path, self.experts, self.rows = path, experts, 0
        self.part = path.with_name(path.name + ".part")
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> TraceWriter:
        """Start; nothing is written before the first piece."""
        return self

    def add(self, piece: Piece) -> None:
        """Write some rows."""
        if not len(piece):
            return
        width = piece.shape[1] * piece.shape[2]
        if self.writer is None:
            self.writer = self._open(piece)
        column = self.writer.schema.field(0)
        flat = pa.array(np.ascontiguousarray(piece).reshape(-1), type=column.type.value_type)
        table = pa.table([pa.FixedSizeListArray.from_arrays(flat, width)], schema=self.writer.schema)
        self.writer.write_table(table, row_group_size=ROWS)
        self.rows += len(piece)

    def __exit__(self, kind: type[BaseException] | None, flaw: object, trace: object) -> None:
        """Give the file its name, or leave none."""
        if self.writer is not None:
            self.writer.close()
        if kind is None and self.rows:
            self.part.replace(self.path)
        self.part.unlink(missing_ok=True)
        if kind is None and not self.rows:
            raise _refused(str(self.path), "there is nothing to write", "record at least one token")

    def _open(self, piece: Piece) -> pq.ParquetWriter:
        layers, last = piece.shape[1:]
        name, number = ("choices", pa.int16()) if self.experts else ("counts", pa.int32())
        sizes = {"layers": layers, "experts": self.experts or last, "topk": last if self.experts else 0}
        metadata = {key: str(size) for key, size in sizes.items()}
        schema = pa.schema([(name, pa.list_(number, layers * last))], metadata=metadata)
        try:
            return pq.ParquetWriter(self.part, schema, compression="zstd")
        except OSError as flaw:
            reason = flaw.strerror or str(flaw)
            raise _refused(str(self.path), f"can't be written: {reason}", "name a file in a folder of yours") from None


def write_choices(path: Path, pieces: Iterable[Integer[np.ndarray, "token layer topk"]], experts: int) -> None:
    """Write choices piece by piece."""
    with TraceWriter(path, experts) as writer:
        for piece in pieces:
            writer.add(piece)


def write_counts(path: Path, pieces: Iterable[Integer[np.ndarray, "batch layer expert"]]) -> None:
    """Write counts piece by piece."""
    with TraceWriter(path) as writer:
        for piece in pieces:
            writer.add(piece)


def _parquet(path: Path, experts: int) -> Trace:
    """Open moesim's own form."""
    with pq.ParquetFile(path) as file:
        metadata, rows, names = file.schema_arrow.metadata or {}, file.metadata.num_rows, file.schema_arrow.names
        kind = file.schema_arrow.types[0] if names else pa.null()
    missing = [name for name in ("layers", "experts", "topk") if name.encode() not in metadata]
    if missing or names not in (["choices"], ["counts"]):
        problem = f"has columns {', '.join(names) or 'none'} and lacks the metadata {', '.join(missing) or 'nothing'}"
        raise _refused(str(path), problem, "write traces with `write_choices`, `write_counts` or the recorder")
    shape = Shape(**{name: int(metadata[name.encode()]) for name in ("layers", "experts", "topk")})
    width = shape.layers * (shape.topk or shape.experts)
    if width < 1 or not pa.types.is_fixed_size_list(kind) or kind.list_size != width:
        raise _refused(str(path), f"its rows are not {shape.layers} layers wide", "write the trace anew")

    def pieces() -> Iterator[Piece]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(len(batch), shape.layers, -1)

    return _checked(Trace(file=str(path), shape=shape, rows=rows, pieces=pieces))


def _numpy(path: Path, experts: int) -> Trace:
    """Open an array by memory map."""
    return _of_array(path, np.load(path, mmap_mode="r", allow_pickle=False), experts)


def _json(path: Path, experts: int) -> Trace:
    """Read counts written as nested lists."""
    tree: Tree = json.loads(path.read_text(encoding="utf-8"))
    found = tree.get("logical_count") if isinstance(tree, dict) else tree
    if found is None:
        raise _refused(str(path), "has no field `logical_count`", "give nested lists of counts, or a section with it")
    array = np.array(found)
    if array.dtype.kind == "f" and np.all(array == np.floor(array)):
        array = array.astype(np.int64)
    return _of_array(path, array, 0)


def _of_array(path: Path, array: np.ndarray, experts: int) -> Trace:
    """Take `[layer expert]` for one batch of counts; three axes are choices where the number of experts is given."""
    cube = array[None] if array.ndim == 2 else array
    if cube.ndim != 3 or cube.dtype.kind not in "iu" or not cube.size:
        problem = f"holds {array.dtype} of shape {array.shape}"
        raise _refused(str(path), problem, "give whole numbers [batch layer expert], or [token layer topk] of choices")
    choices = bool(experts) and array.ndim == 3
    layers, last = cube.shape[1:]
    shape = Shape(layers=layers, experts=experts if choices else last, topk=last if choices else 0)

    def pieces() -> Iterator[Piece]:
        for start in range(0, len(cube), ROWS):
            yield np.asarray(cube[start : start + ROWS])

    return _checked(Trace(file=str(path), shape=shape, rows=len(cube), pieces=pieces))


def _checked(trace: Trace) -> Trace:
    """Look at every piece as it passes: no count is negative, no choice an expert that isn't."""
    if trace.shape.experts > _MOST_EXPERTS:
        raise _refused(
            trace.file, f"has {trace.shape.experts} experts a layer", f"at most {_MOST_EXPERTS} are described"
        )
    top = trace.shape.experts if trace.shape.topk else np.iinfo(np.int64).max

    def pieces() -> Iterator[Piece]:
        row = 0
        for piece in _read(trace):
            low, high = int(piece.min()), int(piece.max())
            if low < 0 or high >= top:
                what = "expert" if trace.shape.topk else "count"
                problem = f"{low if low < 0 else high} is no {what}"
                remedy = f"experts go from 0 to {top - 1}" if trace.shape.topk else "counts are 0 or more"
                raise WorkloadError(trace.file, [Fault(path=f"rows {row} on", problem=problem, remedy=remedy)])
            yield piece
            row += len(piece)

    return Trace(file=trace.file, shape=trace.shape, rows=trace.rows, pieces=pieces)


def _read(trace: Trace) -> Iterator[Piece]:
    """Read on until the end or the damage."""
    try:
        yield from trace.pieces()
    except _UNREADABLE as flaw:
        raise _damaged(trace.file, flaw) from None


_UNREADABLE = (OSError, ValueError, pa.ArrowException)


def _damaged(file: str, flaw: Exception) -> WorkloadError:
    reason = (str(flaw).splitlines() or ["unknown form"])[0]
    return _refused(file, f"can't be read as {Path(file).suffix}: {reason}", "is it whole?")


def _refused(file: str, problem: str, remedy: str) -> WorkloadError:
    return WorkloadError(file, [Fault(path="", problem=problem, remedy=remedy)])
