"""libnftables by ctypes: run nft text in this process, in a context that stays open.

Rule: the context's netlink socket owns a table with `flags owner`; the kernel removes the table when that
socket closes, in whatever way this process ends. So it must not be inherited: it is close-on-exec at once.
Not for: what the rules say (`agent/host/capture/rules.py`).
Source: libnftables(3), nft(8) "flags owner".
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from pathlib import Path
from types import TracebackType

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4


class NetfilterError(Exception):
    """nft refused; the text is its own message."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise NetfilterError(f"{_LIBRARY} cannot be loaded (package libnftables1): {error}") from error
    context, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("nft_ctx_new", context, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [context]),
        ("nft_ctx_buffer_output", ctypes.c_int, [context]),
        ("nft_ctx_buffer_error", ctypes.c_int, [context]),
        ("nft_ctx_get_output_buffer", text, [context]),
        ("nft_ctx_get_error_buffer", text, [context]),
        ("nft_ctx_output_set_flags", None, [context, ctypes.c_uint]),
        ("nft_ctx_set_dry_run", None, [context, ctypes.c_bool]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [context, text]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class Netfilter:
    """One libnftables context. Invariant: its sockets are close-on-exec, and `close` ends what it owns."""

    def __init__(self, *, json: bool = False, dry_run: bool = False) -> None:
        self._library = _load()
        before = _descriptors()
        self._context: int | None = self._library.nft_ctx_new(0)
        if not self._context:
            raise NetfilterError("libnftables gave no context")
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        if json:
            self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)
        if dry_run:
            self._library.nft_ctx_set_dry_run(self._context, True)
        self._own = _descriptors() - before
        self._close_on_exec()

    def run(self, commands: str) -> str:
        """Run nft text as one transaction and return its output; NetfilterError when anything in it fails."""
        if self._context is None:
            raise NetfilterError("the context is closed")
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        self._close_on_exec()
        output = self._library.nft_ctx_get_output_buffer(self._context) or b""
        error = self._library.nft_ctx_get_error_buffer(self._context) or b""
        if status != 0:
            raise NetfilterError(error.decode(errors="replace").strip() or f"nft status {status}")
        return bytes(output).decode(errors="replace")

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Of its netlink socket: whoever has it keeps the tables that it owns."""
        return tuple(sorted(self._own))

    @staticmethod
    def library_path() -> str:
        """The file that is mapped as libnftables, with its full version."""
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            if "libnftables" in line:
                return line.split()[-1]
        return _LIBRARY

    def close(self) -> None:
        """Close the netlink socket; the kernel removes the tables that it owned."""
        if self._context is not None:
            self._library.nft_ctx_free(self._context)
            self._context = None

    def __enter__(self) -> Netfilter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close_on_exec(self) -> None:
        # After every run: libnftables reopens its socket, under the same number, when the cache was stale.
        for descriptor in self._own:
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)


def _descriptors() -> set[int]:
    found = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 (names only)
    # The listing's own descriptor is in it, and closed by now.
    return {descriptor for descriptor in found if Path(f"/proc/self/fd/{descriptor}").is_symlink()}
