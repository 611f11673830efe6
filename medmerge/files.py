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
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

PARTIAL = ".partial"
"""Ending of a file that is being written. Git ignores these."""

LONGEST = 100_000
"""Bytes of the longest file that is not compressed; more would be a burden to a repository."""

_POLL = 0.2  # seconds between two looks at a lock that another process holds
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
}


class DiskError(RuntimeError):
    """A file cannot be written; the message names it, says why, and what is left."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new name beside ``path``, to be written to; moved to ``path`` at the end, or removed after an error.

    Raises:
        DiskError: the disk is full or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        raise DiskError(f"{path} cannot be written: {_reason(path, error)}") from error
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
    packed = _packed(path)
    if len(content) > LONGEST:
        write(packed, gzip.compress(content, mtime=0))
        path.unlink(missing_ok=True)
    else:
        write(path, content)
        packed.unlink(missing_ok=True)


def stored(path: Path) -> Path:
    """The name under which :func:`write_long` has left a file: its own, unless only the compressed one is there."""
    packed = _packed(path)
    return packed if packed.is_file() and not path.is_file() else path


def _packed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


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
        what: what is locked, for who waits: it is told which process holds it.

    Raises:
        DiskError: the folder cannot be made or written.
    """
    lock = FileLock(path, fallback_to_soft=False)  # a lock that is only a file would outlive a killed process
    holder = path.with_name(f"{path.name}-holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, holder, what)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in _OF_THE_DISK:
            raise DiskError(f"{path.parent} cannot be written: {_reason(path, error)}") from error
        log.info("%s cannot be locked (%s); another process may do the same work", what, error)
        yield False
        return
    with contextlib.suppress(OSError):
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield True
    finally:
        # Gone before it is free: who waits for this file sees that it has no name any more, and starts over.
        for one in (holder, path):
            with contextlib.suppress(OSError):
                one.unlink()
        lock.release()


def _acquire(lock: FileLock, holder: Path, what: str) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            name = holder.read_text(errors="replace")[:200]
        except OSError:
            name = "another process"
        log.warning("%s: waiting for %s, which works on it", what, name)
        lock.acquire(poll_interval=_POLL)


def _reason(path: Path, error: OSError) -> str:
    """What is wrong with the disk, and what to do about it."""
    if error.errno == errno.EFBIG:
        return f"{error.strerror}. Raise the limit on the size of files (ulimit -f), then the same command goes on"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = ""
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(path.parent).free / 1e9:.2f} GB are free there)"
        return f"{error.strerror}{free}. Make room, then the same command goes on; what is finished is kept"
    what = f"Make {path.parent} writable"
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        there = next(one for one in (path, *path.parents) if one.exists())
        what = f"{there} is a {'folder' if there.is_dir() else 'file'} and should not be: move it away"
    elif error.errno == errno.ENAMETOOLONG:
        what = "Take shorter names"
    elif error.errno == errno.EIO:
        what = "The disk may be failing: have it checked"
    return f"{error.strerror}. {what}, then the same command goes on; what is finished is kept"


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without it
            raise
    finally:
        os.close(handle)
