"""A tree of image files, on a disk or below a URI: the same questions, with names relative to its root.

A name has slashes; that of the root is ''. On a disk symbolic links are followed, but for those that lead back to where
they came from. A bucket has no empty folders and no links, and is listed once.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sweeper.datasets import given_path
from sweeper.datasets._places import MAX_FILE_BYTES, Remote, hidden, is_remote
from sweeper.errors import InputError
from sweeper.fingerprint import file_sha256
from sweeper.wording import one_line

HASH_THREADS = 8
MAX_ROUTES = 100  # ways to one folder through links, which multiply where linked folders hold links


class DiskFolder:
    """A folder of this machine. Its sources are absolute paths. Every method may raise OSError."""

    def __init__(self, root: Path, extensions: Sequence[str], where: str) -> None:
        self.root, self.extensions, self.where = root, extensions, where

    def subfolders(self, folder: str = "") -> list[str]:
        """Names of the visible folders, without links back to a folder above (a loop)."""
        place = self.root / folder
        above = {os.path.realpath(place), *map(str, Path(os.path.realpath(place)).parents)}
        children = (Path(entry.path) for entry in os.scandir(place) if not hidden(entry.name) and _is_folder(entry))
        kept = sorted(child for child in children if os.path.realpath(child) not in above)
        return [child.relative_to(self.root).as_posix() for child in kept]

    def has_direct_image(self, folder: str = "") -> bool:
        """Whether an image lies in the folder itself."""
        entries = os.scandir(self.root / folder)
        return any(_is_image(entry.name, self.extensions) and not _is_folder(entry) for entry in entries)

    def images_below(self, folder: str = "") -> Iterator[str]:
        """Names of the images at any depth. Raises InputError: a name that is no text, or links that multiply."""
        for file in images_below(self.root / folder, self.extensions):
            yield self._relative(file)

    def suffixes_below(self, folder: str = "") -> list[str]:
        """The endings of all files, for a message."""
        files = (file for _, _, some in os.walk(self.root / folder) for file in some)
        return sorted({Path(file).suffix.lower() or "no extension" for file in files})

    def text(self, name: str) -> str | None:
        """A text file; None where there is none."""
        path = self.root / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def source(self, name: str) -> str:
        """What decoding opens."""
        return str((self.root / name).absolute())

    def digests(self, names: Sequence[str]) -> list[str]:
        """Of the bytes of each file."""
        with ThreadPoolExecutor(HASH_THREADS) as threads:
            return list(threads.map(digest, map(self.source, names)))

    def _relative(self, file: Path) -> str:
        name = file.relative_to(self.root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{self.where}: the file name {name!r} is not valid UTF-8; rename the file") from None
        return name


class RemoteFolder:
    """What lies below a URI. Its sources are paths of `Remote`."""

    def __init__(self, remote: Remote, extensions: Sequence[str]) -> None:
        self.remote, self.extensions = remote, extensions
        self.files = list(remote.files())
        self._folders: defaultdict[str, set[str]] = defaultdict(set)  # folder -> its sub-folders
        self._images: defaultdict[str, list[str]] = defaultdict(list)  # folder -> images that lie in it
        for name in self.files:
            folder = name.rpartition("/")[0]
            if _is_image(name.rpartition("/")[2], extensions):
                self._images[folder].append(name)
            while folder and folder not in self._folders[folder.rpartition("/")[0]]:
                self._folders[folder.rpartition("/")[0]].add(folder)
                folder = folder.rpartition("/")[0]

    def subfolders(self, folder: str = "") -> list[str]:
        """Names of the folders."""
        return sorted(self._folders.get(folder, ()))

    def has_direct_image(self, folder: str = "") -> bool:
        """Whether an image lies in the folder itself."""
        return bool(self._images.get(folder))

    def images_below(self, folder: str = "") -> Iterator[str]:
        """Names of the images at any depth."""
        yield from self._images.get(folder, ())
        for child in self.subfolders(folder):
            yield from self.images_below(child)

    def suffixes_below(self, folder: str = "") -> list[str]:
        """The endings of all files, for a message."""
        below = (name for name in self.files if f"{name}/".startswith(f"{folder}/") or not folder)
        return sorted({Path(name).suffix.lower() or "no extension" for name in below})

    def text(self, name: str) -> str | None:
        """A text file; None where there is none."""
        return self.remote.text(name)

    def source(self, name: str) -> str:
        """What decoding opens."""
        return self.remote.source(name)

    def digests(self, names: Sequence[str]) -> list[str]:
        """What the server says of each file's contents."""
        return self.remote.digests(names)


Folder = DiskFolder | RemoteFolder


def open_folder(text: str, extensions: Sequence[str], where: str, hint: str) -> Folder:
    """The folder that a setting names. Raises InputError: none, an empty one, or a file; `hint` says what to give."""
    if not is_remote(text):
        root = given_path(text, where)
        _check_root(root, where, hint)
        return DiskFolder(root, extensions, where)
    remote = Remote(text, where)
    if remote.pattern:
        raise InputError(f"{where}: {remote.pattern!r} is a pattern; {hint}")
    folder = RemoteFolder(remote, extensions)
    if not folder.files:
        raise InputError(f"{where}: no file lies below it; {hint}")
    if folder.files == [""]:
        raise InputError(f"{where}: is a file; {hint}, or use `kind: parquet` for parquet files")
    return folder


def _check_root(root: Path, where: str, hint: str) -> None:
    if not root.exists():
        near = next((str(parent) for parent in root.absolute().parents if parent.is_dir()), "/")
        raise InputError(f"{where}: no such folder (the nearest one that exists is {one_line(near)}); {hint}")
    if not root.is_dir():
        raise InputError(f"{where}: is a file; {hint}, or use `kind: parquet` for parquet files")
    if not any(not hidden(name) for name in os.listdir(root)):
        raise InputError(f"{where}: the folder is empty; {hint}")


def images_below(folder: Path, extensions: Sequence[str]) -> Iterator[Path]:
    """Image files below a folder, through symbolic links but for those that lead back to where they came from.

    Raises:
        OSError: a folder that cannot be listed.
        InputError: links that lead to one folder in more than `MAX_ROUTES` ways.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a split need not have every class
            raise error

    real = {str(folder): frozenset([os.path.realpath(folder)])}
    routes: Counter[str] = Counter()
    for current, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        above = real.pop(current)
        kept = []
        for name in folders:
            target = os.path.realpath(os.path.join(current, name))
            if not hidden(name) and not any(f"{place}/".startswith(f"{target}/") for place in above):
                kept.append(name)
                real[os.path.join(current, name)] = above | {target}
                routes[target] += 1
                if routes[target] > MAX_ROUTES:
                    raise InputError(
                        f"{one_line(target)}: symbolic links lead here in more than {MAX_ROUTES} ways; remove some"
                    )
        folders[:] = kept
        yield from (Path(current, name) for name in files if _is_image(name, extensions))


def _is_image(name: str, extensions: Sequence[str]) -> bool:
    return not hidden(name) and name.lower().endswith(tuple(extensions))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def digest(path: str) -> str:
    """Of the bytes; a file that cannot be read has a digest too, since decoding it counts and lists it."""
    try:
        check_file(path)
        return file_sha256(path)
    except OSError as error:
        return hashlib.sha256(f"unreadable: {type(error).__name__}".encode()).hexdigest()


def check_file(path: str) -> None:
    """Refuse what never ends or does not fit into memory.

    Raises:
        OSError: a pipe, a device or the like, or more than `MAX_FILE_BYTES`.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if found.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes, more than {MAX_FILE_BYTES:,}")
