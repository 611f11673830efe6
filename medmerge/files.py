"""Files that are whole or not there, and folders in which one process works at a time.

A process can end at any moment, a disk can fill in the middle of a file. What is written here has another name until
it is complete and on the disk: a reader never sees a part of it, and the file that was there before stays until then.
"""

import contextlib
import errno
import gzip
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Ending of a file that is being written. Git ignores these."""

LONGEST = 100_000
"""Bytes of the longest file that is not compressed; more would be a burden to a repository."""

_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
}


class DiskError(RuntimeError):
    """A file cannot be written; the message names it, says why, and what to do."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new name beside ``path``, to be written to; moved to ``path`` at the end, or removed after an error.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole; text as UTF-8.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_long(path: Path, content: bytes) -> None:
    """Write a file whole; one of more than :data:`LONGEST` bytes as ``<name>.gz``. The other form is removed.

    Raises:
        DiskError: as :func:`write`.
    """
    plain, packed = path, path.with_name(f"{path.name}.gz")
    if len(content) > LONGEST:
        plain, packed, content = packed, plain, gzip.compress(content, mtime=0)
    write(plain, content)
    packed.unlink(missing_ok=True)


def stored(path: Path) -> Path:
    """The name under which :func:`write_long` has left a file: its own, unless only the compressed one is there."""
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what processes that were killed had written of files in a folder; call it where nobody else writes."""
    for path in folder.glob(f".{name}.*{PARTIAL}"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[bool]:
    """Wait until no other process holds the lock on ``path``; yield whether that is certain.

    The system frees the lock of a process that dies. Where the file system knows no locks, all go on, and a log line
    says so.

    Args:
        path: a file that is made for the lock and removed after it.
        what: what is locked, for who waits.

    Raises:
        DiskError: the folder cannot be made or written.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a lock that is only a file would outlive a killed process
    try:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.warning("%s: waiting for another process, which works on it", what)
                lock.acquire(poll_interval=0.2)
    except (OSError, NotImplementedError) as error:
        log.info("%s cannot be locked (%s); another process may do the same work", what, error)
        yield False
        return
    try:
        yield True
    finally:
        # Gone before it is free: who waits for this file sees that it has no name any more, and starts over.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn an error that is the disk's into a :class:`DiskError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        todo = f"{path.parent} must be a folder that may be written"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            there = next(folder for folder in path.absolute().parents if folder.is_dir())
            todo = f"Make room ({shutil.disk_usage(there).free / 1e9:.2f} GB are free there)"
        goes_on = "then the same command goes on; what is finished is kept"
        raise DiskError(f"{path} cannot be written: {error.strerror}. {todo}, {goes_on}") from error
