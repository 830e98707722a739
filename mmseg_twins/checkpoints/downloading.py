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
from .reading import sha256
from .writing import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMES = ('http', 'https')
TIMEOUT = 60  # seconds without an answer
# As published names have it: `-`, the beginning of the digest, the ending. A date of
# eight digits is none.
HASH = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[a-z]+$')


def is_url(source: str) -> bool:
    """Return whether a source is a URL and no path."""
    return '://' in source


def fetch(url: str, folder: Path | None = None, *, progress: bool = True) -> Path:
    """Download a file, unless an earlier download is there.

    Args:
        url: begins with ``http://`` or ``https://``. Where the file's name has a hash,
            such as ``alt_gvt_small_20220308-7e1c3695.pth``, the file's SHA-256 digest
            must begin with it.
        folder: where the file is kept; PyTorch's ``$TORCH_HOME/hub/checkpoints`` by
            default. Of several processes that want it at once, one downloads.
        progress: whether to show how far the download is, on stderr.

    Returns:
        The file.

    Raises:
        CheckpointError: the URL cannot be downloaded, or what comes is cut short, has
            another hash or is no checkpoint. Nothing is kept then.
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
            return path
        download(url, path, prefix, progress=progress)
    return path


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, where the system has any."""
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
            check_digest(url, sha256(temporary), prefix)
            check_beginning(url, temporary)
    except (OSError, HTTPException) as error:
        # An HTTPError's reason lacks the status.
        known = None if isinstance(error, HTTPError) else getattr(error, 'reason', None)
        reason = known or error
        raise OSError(f'{url} could not be downloaded ({reason})') from None


def check_beginning(url: str, path: Path) -> None:
    """Check that a download is no web page, which a dead host may give instead.

    Raises:
        CheckpointError: it is one.
    """
    with path.open('rb') as file:
        start = file.read(64).lstrip()
    if start.startswith(b'<'):
        raise CheckpointError(
            f'{url} gives a web page, not a checkpoint; it was not kept'
        )


def file_name(url: str) -> str:
    """Return the name of the file that a URL ends in.

    Raises:
        CheckpointError: the URL is none that can be downloaded.
    """
    try:
        parts = urlsplit(url)
        name = Path(unquote(parts.path)).name
        if parts.scheme in SCHEMES and parts.hostname and name:
            return name
    except ValueError:  # brackets or a port that are none
        pass
    raise CheckpointError(
        f'{url} cannot be downloaded; give a path, or a URL that begins with http:// '
        'or https:// and ends in the name of a file'
    )


def receive(response: HTTPResponse, path: Path, name: str, progress: bool) -> None:
    """Write what a server sends to a file.

    Raises:
        CheckpointError: it is shorter than the server said.
    """
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


def check_digest(url: str, digest: str, prefix: str) -> None:
    """Compare a download with the hash in its name.

    Raises:
        CheckpointError: they differ.
    """
    if not digest.startswith(prefix):
        raise CheckpointError(
            f'what {url} gives is not what its name says: its sha256 begins with '
            f'{digest[: len(prefix)]}, expected {prefix}; it was not kept'
        )
