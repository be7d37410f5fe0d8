"""Unix sockets at a path that only their owner may open (0600): the kernel checks who connects.

Rule: the mode is there before the path is; a socket that an ended process left is replaced, any other file is not; at
the end the path is removed unless it has become another's.
Not for: what is said on the socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

LONGEST_PATH = 107
"""Bytes of a path (sun_path of unix(7), without its NUL)."""
_BACKLOG = 128
_CREDENTIALS = struct.Struct("iII")
"""pid, uid, gid: struct ucred of SO_PEERCRED, unix(7)."""


def refuse_served(path: Path) -> None:
    """Raise OSError (EADDRINUSE) when a process listens at `path`, and another when that cannot be found out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        except BlockingIOError:
            pass  # it has so many connections to accept that this one would have to wait
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    raise OSError(errno.EADDRINUSE, "another process listens there", str(path))


@contextmanager
def private_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket at `path`, whose folder exists; closed and removed after use. Raises OSError."""
    _remove_socket(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            os.umask(mask)
        # Open, so that the file's number is given to no other file as long as it is compared.
        own = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            sock.listen(_BACKLOG)
            yield sock
        finally:
            if _is_same(own, path):
                path.unlink(missing_ok=True)
            os.close(own)


def peer_user(sock: trio.socket.SocketType) -> int:
    """The user id of the process that opened the other end of a Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _remove_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "a file that is not a socket is there", str(path))
    path.unlink(missing_ok=True)


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
