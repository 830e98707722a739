"""The one downloader, which keeps checkpoints where PyTorch keeps them."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import torch
from rich.console import Console
from rich.progress import wrap_file

from ..errors import CheckpointError
from ..version import __version__
from .reading import file_format, sha256
from .writing import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TIMEOUT = 60  # seconds without an answer
# The end of published names: `-`, the beginning of the digest, the suffix. Eight digits
# that are a date are none.
HASH = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[a-z]+$')


def is_url(source: str) -> bool:
    """Return whether a source is a URL and no path."""
    return '://' in source


def locate(source: str | Path, *, progress: bool = True) -> Path:
    """Return the path of a checkpoint, which is downloaded if ``source`` is a URL.

    Args:
        source: a path, or an http(s) URL for :func:`fetch`.
        progress: whether to show the progress of a download on stderr.

    Raises:
        CheckpointError: as :func:`fetch` does.
        OSError: the download failed.
    """
    source = str(source)
    return fetch(source, progress=progress) if is_url(source) else Path(source)


def fetch(url: str, folder: Path | None = None, *, progress: bool = True) -> Path:
    """Download a checkpoint, unless an earlier download exists, and return its path.

    Args:
        url: begins with ``http://`` or ``https://``. If the file's name has a hash,
            such as ``alt_gvt_small_20220308-7e1c3695.pth``, the file's SHA-256 digest
            must begin with it.
        folder: where to keep the file; ``$TORCH_HOME/hub/checkpoints`` by default. If
            several processes want the same file, one of them downloads it.
        progress: whether to show the progress on stderr.

    Raises:
        CheckpointError: the URL cannot be downloaded, or the download is incomplete,
            has another hash or is no checkpoint. Nothing is kept then.
        OSError: the download failed.
    """
    name = file_name(url)
    match = HASH.search(name)
    prefix = match[1] if match else ''
    folder = folder or Path(torch.hub.get_dir(), 'checkpoints')
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with lock(folder):
        if path.is_file() and sha256(path).startswith(prefix):
            if progress:
                print(f'using the earlier download {path}', file=sys.stderr)
        else:
            download(url, path, prefix, progress=progress)
    return path


def file_name(url: str) -> str:
    """Return the name of the file that a URL ends in.

    Raises:
        CheckpointError: the URL cannot be downloaded.
    """
    try:
        parts = urlsplit(url)
        name = Path(unquote(parts.path)).name
        if parts.scheme in ('http', 'https') and parts.hostname and name:
            return name
    except ValueError:  # invalid brackets or port
        pass
    raise CheckpointError(
        f'{url} cannot be downloaded; give a path, or a URL that begins with http:// '
        'or https:// and ends in the name of a file'
    )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, where the system has locks."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def download(url: str, path: Path, prefix: str, *, progress: bool) -> None:
    """Download a checkpoint whose SHA-256 digest begins with ``prefix``."""
    request = Request(url, headers={'User-Agent': f'mmseg_twins/{__version__}'})
    try:
        with (
            urlopen(request, timeout=TIMEOUT) as response,
            replacing(path, force=True) as temporary,
        ):
            receive(response, temporary, path.name, progress)
            digest = sha256(temporary)
            if not digest.startswith(prefix):
                raise CheckpointError(
                    f'{url} gives another file than its name says: its sha256 begins '
                    f'with {digest[: len(prefix)]}, expected {prefix}; it was not kept'
                )
            file_format(temporary, f'the download from {url}')
    except (OSError, HTTPException) as error:
        # An HTTPError's reason lacks the status.
        known = None if isinstance(error, HTTPError) else getattr(error, 'reason', None)
        raise OSError(f'{url} could not be downloaded ({known or error})') from None


def receive(response: HTTPResponse, path: Path, name: str, progress: bool) -> None:
    """Write a response to a file, and check that it is complete."""
    stated = response.headers.get('Content-Length')
    size = int(stated) if stated and stated.isdigit() else None
    console = Console(stderr=True)
    shown = wrap_file(
        response,
        size or 0,
        description=name,
        console=console,
        transient=True,
        disable=not (progress and console.is_terminal),
    )
    with shown as body, path.open('wb') as file:
        shutil.copyfileobj(body, file, 1 << 20)
    received = path.stat().st_size
    if size is not None and received != size:
        raise CheckpointError(
            f'the download of {name} broke off after {received} of {size} bytes; try '
            'again'
        )
