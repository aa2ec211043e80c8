"""Files of data sets: inside packages, at public addresses, or fetched by hand."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

FOLDER_VARIABLE = "STATESPACE_DATA"


class PackageFile(NamedTuple):
    """A file inside an installed package (this one, say), which is found without importing it."""

    package: str
    path: str
    install: str


class PublicFile(NamedTuple):
    """A file at a public address, with its SHA-256."""

    url: str
    sha256: str


class PageFile(NamedTuple):
    """A file that is inside an archive on a public page, to be put into the user's folder by hand."""

    page: str


def locate(name: str, file: str, where: PackageFile | PublicFile | PageFile) -> Path:
    """Where the file is on this machine; a public one is downloaded if it is not there yet.

    Args:
        name: of the data set.
        file: its path below the folder of the public files.
        where: what it is a part of.

    Raises:
        ValueError: if a file is not the one that was published.
        ImportError: if the package that holds it, or pooch for a download, is not installed.
        ConnectionError: if a download fails.
        FileNotFoundError: if it has to be fetched by hand and is not in the user's folder.
    """
    if isinstance(where, PackageFile):
        return _in_package(name, where)
    if isinstance(where, PageFile):
        return _by_hand(name, file, where)
    return _public(name, file, where)


def _in_package(name: str, where: PackageFile) -> Path:
    spec = importlib.util.find_spec(where.package)
    roots = [] if spec is None else spec.submodule_search_locations or []
    found = [path for root in roots if (path := Path(root, where.path)).is_file()]
    if not found:
        missing = "is not installed" if spec is None else f"lacks the file {where.path}"
        raise ImportError(
            f"the data set {name!r} is a file of the package {where.package!r}, which {missing}: "
            f"`pip install {where.install}` (with `--no-deps` if you want it for the file only)."
        )
    return found[0]


def _by_hand(name: str, file: str, where: PageFile) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and (path := Path(folder).expanduser() / file).is_file():
        return path
    raise FileNotFoundError(
        f"the data set {name!r} has to be fetched by hand: from {where.page} put the file "
        f"{Path(file).name} at {file} below a folder, and name the folder in the environment variable "
        f"{FOLDER_VARIABLE}."
    )


def _public(name: str, file: str, where: PublicFile) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder and (path := Path(folder).expanduser() / file).is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != where.sha256:
            raise ValueError(
                f"{path} is not the published file of the data set {name!r}: its SHA-256 is {found}, that "
                f"of the published one {where.sha256}; remove it to download that."
            )
        return path
    by_hand = (
        f"put {where.url} at {file} below a folder, and name the folder in the environment variable "
        f"{FOLDER_VARIABLE}"
    )
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"the data set {name!r} is downloaded with pooch, which is not installed: `pip install pooch`; "
            f"or {by_hand}."
        ) from error
    target = Path(pooch.os_cache("statespace")) / file
    try:
        found = pooch.retrieve(where.url, where.sha256, fname=target.name, path=target.parent)
    except OSError as error:
        raise ConnectionError(
            f"the data set {name!r} could not be downloaded ({error}); try again, or {by_hand}."
        ) from error
    return Path(found)
