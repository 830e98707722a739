"""Fetches checkpoints to the folder where PyTorch keeps what it downloads."""

from __future__ import annotations

import re
import shutil
import sys
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

import torch
from rich.console import Console
from rich.progress import wrap_file

from ..version import __version__
from .atomic import replacing
from .errors import ConversionError
from .reading import sha256

SCHEMES = ('http', 'https')
TIMEOUT = 60  # seconds without an answer
# As published names have it: `-`, the beginning of the digest, the ending. A date of
# eight digits is none.
HASH = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[a-z]+$')


def is_url(source: str) -> bool:
    """Whether a source is a URL and no path."""
    return '://' in source


def fetch(url: str, *, progress: bool = True) -> Path:
    """Downloads a file, unless an earlier download is there.

    Args:
        url: begins with ``http://`` or ``https://``. Where the file's name has a hash,
            such as ``alt_gvt_small_20220308-7e1c3695.pth``, the file's SHA-256 digest
            must begin with it.
        progress: whether to show how far the download is, on stderr.

    Returns:
        The file in PyTorch's cache, ``$TORCH_HOME/hub/checkpoints``.

    Raises:
        ConversionError: the URL is none that can be downloaded, or what comes is cut
            short or has another hash.
        OSError: the download failed.
    """
    name = file_name(url)
    match = HASH.search(name)
    prefix = match[1] if match else ''
    folder = Path(torch.hub.get_dir(), 'checkpoints')
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.is_file() and sha256(path).startswith(prefix):
        if progress:
            print(f'using the earlier download {path}', file=sys.stderr)
        return path
    request = Request(url, headers={'User-Agent': f'mmseg_twins/{__version__}'})
    try:
        with (
            urlopen(request, timeout=TIMEOUT) as response,
            replacing(path, force=True) as temporary,
        ):
            receive(response, temporary, name, progress)
            check_digest(url, sha256(temporary), prefix)
    except (OSError, HTTPException) as error:
        reason = error if isinstance(error, HTTPError) else None
        reason = reason or getattr(error, 'reason', None) or error
        raise OSError(f'{url} could not be downloaded ({reason})') from None
    return path


def file_name(url: str) -> str:
    """The name of the file that a URL ends in.

    Raises:
        ConversionError: the URL is none that can be downloaded.
    """
    try:
        parts = urlsplit(url)
        name = Path(unquote(parts.path)).name
        if parts.scheme in SCHEMES and parts.hostname and name:
            return name
    except ValueError:  # brackets or a port that are none
        pass
    raise ConversionError(
        f'{url} cannot be downloaded; give a path, or a URL that begins with http:// '
        'or https:// and ends in the name of a file'
    )


def receive(response: HTTPResponse, path: Path, name: str, progress: bool) -> None:
    """Writes what a server sends to a file.

    Raises:
        ConversionError: it is shorter than the server said.
    """
    size = response.headers.get('Content-Length')
    size = int(size) if size and size.isdigit() else None
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
        raise ConversionError(
            f'the download of {name} broke off after {received} of {size} bytes; try '
            'again'
        )


def check_digest(url: str, digest: str, prefix: str) -> None:
    """Compares a download with the hash in its name.

    Raises:
        ConversionError: they differ.
    """
    if not digest.startswith(prefix):
        raise ConversionError(
            f'what {url} gives is not what its name says: its sha256 begins with '
            f'{digest[: len(prefix)]}, expected {prefix}; it was not kept'
        )
