"""Files that appear under their name only when they are whole, whatever ends the process that writes them."""

import contextlib
import errno
import glob
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl


class NewFile:
    """Writes `<path>.tmp-<pid>`, which close() brings to disk and renames to `path`; an exception removes it.

    What a killed process has left behind is removed by the next one that writes the same path: a lock, which ends with
    its process, tells those that are still at work (on Windows the open file does). Raises OSError naming the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self.path = os.fspath(path)
        self.overwrite = overwrite
        self._refuse_to_overwrite()
        remove_leftovers(self.path)
        self._temporary, self._file = self._create()

    def _refuse_to_overwrite(self) -> None:
        if not self.overwrite and os.path.lexists(self.path):
            raise FileExistsError(
                errno.EEXIST, "it exists, and is replaced only if told (overwrite, --force)", self.path
            )

    def _create(self) -> tuple[str, BinaryIO]:
        number = 0
        while True:
            temporary = f"{self.path}.tmp-{os.getpid()}" + (f"-{number}" if number else "")
            try:
                file = open(temporary, "xb")  # noqa: SIM115 - close() and discard() close it
            except FileExistsError:  # another thread's
                number += 1
                continue
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path) from None
            if _lock(file):
                return temporary, file
            file.close()  # another process took it for a leftover before it was locked

    def write(self, data: "bytes | memoryview") -> None:
        """Append."""
        with self._named_errors():
            self._file.write(data)

    def close(self) -> None:
        """Put the file in its place. On an error nothing of it is left."""
        try:
            with self._named_errors():
                self._file.flush()
                os.fsync(self._file.fileno())
                self._refuse_to_overwrite()
                if sys.platform == "win32":
                    self._file.close()
                os.replace(self._temporary, self.path)
        except BaseException:
            self.discard()
            raise
        self._file.close()
        _sync_directory(self.path)

    def discard(self) -> None:
        """Remove what has been written."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.filename == self.path:
                raise
            raise OSError(error.errno, error.strerror, self.path) from None

    def __enter__(self) -> "NewFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def remove_leftovers(path: str) -> None:
    """Remove the temporary files for `path` whose writers are no more."""
    for name in glob.glob(f"{glob.escape(path)}.tmp-*"):
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                os.unlink(name)  # fails while it is open
                continue
            with open(name, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name)


def _lock(file: BinaryIO) -> bool:
    """Whether the file is ours now and still there."""
    if sys.platform == "win32":
        return True
    with contextlib.suppress(OSError):  # file systems without locks
        fcntl.flock(file, fcntl.LOCK_EX)
    return os.fstat(file.fileno()).st_nlink > 0


def _sync_directory(path: str) -> None:
    """Bring the new name to disk too."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
