"""Reading and writing files: bounded on the way in, whole or not at all on the way out."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from hwq.errors import Error

__all__ = [
    "MAX_BYTES",
    "Stream",
    "read_bytes",
    "read_npz",
    "refuse_existing",
    "streams",
    "write_atomically",
    "write_npz",
]

# Default bound on any file that is read whole and on what an archive may unpack to: 4 GiB.
MAX_BYTES = 4 << 30
# What a disk says that takes no more: full, beyond a quota or a limit, failing.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
# What the two readers of NumPy's own files raise; RuntimeError: an encrypted member, or a header that nests too deep
# (NotImplementedError is one).
_DAMAGE = (OSError, ValueError, EOFError, KeyError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)

PathLike = str | os.PathLike[str]


def read_bytes(path: PathLike, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most `max_bytes` bytes.

    Raises
    ------
    Error
        The file is missing, not a regular file, unreadable or too large.
    """
    source = Path(path)
    size = _size(source)
    if size > max_bytes:
        raise Error(
            f"the file has {size} bytes, more than the bound of {max_bytes}",
            where=str(source),
            remedy="raise --max-bytes (max_bytes=) if the file is what you think it is",
        )
    try:
        return source.read_bytes()
    except OSError as error:
        raise Error(f"cannot read the file: {error.strerror}", where=str(source)) from error


def _size(source: Path) -> int:
    try:
        if not source.is_file():
            what = "this is not a regular file" if source.exists() else "there is no such file"
            raise Error(what, where=str(source), remedy="check the path")
        return source.stat().st_size
    except (OSError, ValueError) as error:
        raise Error(f"cannot read the file: {error}", where=str(source)) from error


def read_npz(path: PathLike, max_bytes: int = MAX_BYTES) -> dict[str, NDArray[np.generic]]:
    """Read every array of an ``.npz`` (or the one of an ``.npy``) without pickles and within `max_bytes` unpacked.

    Raises
    ------
    Error
        Not an archive, damaged, an object array, or it would unpack to more than `max_bytes`.
    """
    source = Path(path)
    _size(source)
    try:
        if not zipfile.is_zipfile(source):
            read_bytes(source, max_bytes)
            return {"arr_0": _array({"": np.load(source, allow_pickle=False)}, "", source)}
        with zipfile.ZipFile(source) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > max_bytes:
            raise Error(
                f"the archive unpacks to {claimed} bytes, more than the bound of {max_bytes}",
                where=str(source),
                remedy="raise --max-bytes (max_bytes=) if you trust the file",
            )
        with np.load(source, allow_pickle=False) as arrays:
            return {name: _array(arrays, name, source) for name in arrays.files}
    except _DAMAGE as error:
        raise _bad_archive(source, error) from error


@dataclass(frozen=True)
class Stream:
    """An array that stays in its file and is read along its first axis, any number of times.

    Attributes
    ----------
    source : Path
    member : str
        Inside an archive; empty for an ``.npy``.
    dtype : numpy dtype
    shape : tuple of int
    whole : bool
        It must be read with `read_npz`: it has no axis, or its first axis is not the slowest in the file.
    """

    source: Path
    member: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    whole: bool = False

    @property
    def stand_in(self) -> NDArray[np.generic]:
        """An array of this type and shape that takes no memory; its values say nothing."""
        return np.broadcast_to(np.zeros((), self.dtype), self.shape)

    def pieces(self, size: int) -> Iterator[NDArray[np.generic]]:
        """The array in parts of `size` along its first axis, the last one smaller.

        Raises
        ------
        Error
            The file is damaged, shorter than its header says, or was changed since `streams` looked.
        """
        try:
            with _opened(self.source, self.member) as stream:
                if _header(stream) != (self.dtype, self.shape, self.whole):
                    raise ValueError("the file has changed")
                for start in range(0, self.shape[0], size):
                    shape = (min(size, self.shape[0] - start), *self.shape[1:])
                    wanted = math.prod(shape) * self.dtype.itemsize
                    data = stream.read(wanted)
                    if len(data) != wanted:
                        raise EOFError(f"the data end in sample {start + len(data) * shape[0] // max(wanted, 1)}")
                    yield np.frombuffer(data, self.dtype).reshape(shape)
        except _DAMAGE as error:
            raise _bad_archive(self.source, error) from error


def streams(path: PathLike, max_bytes: int = MAX_BYTES) -> dict[str, Stream]:
    """The arrays of an ``.npz`` (or the one of an ``.npy``) as streams: of any length, a sample within `max_bytes`.

    Raises
    ------
    Error
        As `read_npz`.
    """
    source = Path(path)
    bytes_there = _size(source)
    found: dict[str, Stream] = {}
    try:
        sizes = {"": bytes_there}
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                sizes = {item.filename: item.file_size for item in archive.infolist()}
        for member, size in sizes.items():
            name = member.removesuffix(".npy") if member else "arr_0"
            with _opened(source, member) as stream:
                magic = not member or stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
            if not magic:
                raise _not_plain(name, source)
            with _opened(source, member) as stream:
                dtype, shape, whole = _header(stream)
                held = size - stream.tell()
            if dtype.hasobject:
                raise _not_plain(name, source)
            total, sample = (math.prod(part) * dtype.itemsize for part in (shape, shape[1:]))
            if total > held:
                raise EOFError(f"the header claims {total} bytes, the file has {held}")
            if sample > max_bytes:
                raise Error(
                    f"a sample has {sample} bytes, more than the bound of {max_bytes}",
                    where=f"{source}#{name}",
                    remedy="raise --max-bytes (max_bytes=) if you trust the file",
                )
            found[name] = Stream(source, member, dtype, shape, whole)
    except _DAMAGE as error:
        raise _bad_archive(source, error) from error
    return found


@contextlib.contextmanager
def _opened(source: Path, member: str) -> Iterator[IO[bytes]]:
    with contextlib.ExitStack() as stack:
        if not member:
            yield stack.enter_context(source.open("rb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(source))
            yield stack.enter_context(archive.open(member))


def _header(stream: IO[bytes]) -> tuple[np.dtype[np.generic], tuple[int, ...], bool]:
    """Type, shape, and `Stream.whole`; a header of version 3 has names of fields, which are no numbers."""
    version = np.lib.format.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"an array of format version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, turned, dtype = read(stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"a shape of {shape}")
    return dtype, shape, not shape or (bool(turned) and len(shape) > 1)


def _array(arrays: Mapping[str, NDArray[np.generic]], name: str, source: Path) -> NDArray[np.generic]:
    array = arrays[name]
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise _not_plain(name, source)
    return array


def _not_plain(name: str, source: Path) -> Error:
    return Error(
        "this member is not a plain numeric array",
        where=f"{source}#{name}",
        why="object arrays and foreign members would need unpickling, which runs code",
        remedy="save plain arrays with numpy.savez",
    )


def _bad_archive(source: Path, error: Exception) -> Error:
    return Error(
        "cannot read arrays from this file",
        where=str(source),
        why=f"{type(error).__name__}: {error}",
        remedy="give an .npz or .npy of plain numeric arrays, as numpy.savez writes it",
    )


@contextlib.contextmanager
def write_atomically(path: PathLike, *, overwrite: bool = False, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears at `path` only when the block ends without an exception.

    Raises
    ------
    Error
        The file exists and `overwrite` is false, the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    refuse_existing(target, overwrite)
    try:
        if target.is_dir():
            raise Error("this is a folder, a file was expected", where=str(target), remedy="name a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".hwq-", suffix=".part")
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from error
    stream: IO[Any] = (
        os.fdopen(descriptor, mode) if "b" in mode else os.fdopen(descriptor, mode, encoding="utf-8", newline="")
    )
    try:
        with stream:
            yield stream
            stream.flush()
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in FULL:
            raise _unwritable(target, error) from error
        raise


def refuse_existing(path: PathLike, overwrite: bool) -> None:
    """Before work whose result goes to `path`: it must not exist, unless it may be replaced.

    Raises
    ------
    Error
        It exists and `overwrite` is false, or no file can have such a name.
    """
    target = Path(path)
    try:
        os.lstat(target)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from error
    if not overwrite:
        raise Error(
            "the file exists already",
            where=str(target),
            remedy="choose another name or pass --overwrite (overwrite=True)",
        )


def _unwritable(target: Path, error: Exception) -> Error:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return Error(
        f"cannot write here: {reason}",
        where=str(target),
        remedy="check the name, the folder, its permissions and its space",
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_npz(path: PathLike, arrays: Mapping[str, NDArray[np.generic]], *, overwrite: bool = False) -> None:
    """Write arrays as a compressed ``.npz``, whole or not at all."""
    with write_atomically(path, overwrite=overwrite) as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
