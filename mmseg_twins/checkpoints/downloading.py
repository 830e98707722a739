"""Download files from http(s) URLs and from the Hugging Face hub."""

from __future__ import annotations

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
from filelock import FileLock
from rich.console import Console
from rich.progress import wrap_file

from ..errors import CheckpointError
from ..version import __version__
from .reading import file_format, one_line, sha256
from .writing import replacing

TIMEOUT = 10  # seconds without an answer
ATTEMPTS = 2  # for connections that break off
# The end of published names: `-`, the beginning of the digest, the suffix. A date of
# eight digits is not a digest.
HASH = re.compile(r'-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.[a-z]+$')
DIGEST = re.compile(r'[0-9a-f]{64}')


class BrokenOffError(CheckpointError):
    """A download that ended early; another attempt may succeed."""


def is_url(source: str) -> bool:
    """Return whether a source is a URL rather than a path."""
    return '://' in source


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
        CheckpointError: the file cannot be downloaded, is incomplete, has another hash
            or is not a checkpoint; it is not kept.
    """
    name = file_name(url)
    match = HASH.search(name)
    prefix = match[1] if match else ''
    path = (folder or torch_folder()) / name
    with locked(path.parent):
        if path.is_file() and sha256(path).startswith(prefix):
            if progress:
                print(f'using the earlier download {path}', file=sys.stderr)
        else:
            download(url, path, prefix, progress=progress)
    return path


def fetch_from_hub(repository: str, name: str, digest: str = '') -> Path:
    """Download a file from the Hugging Face hub to the hub's cache; return its path.

    ``huggingface_hub`` is used, with its variables such as ``HF_ENDPOINT``,
    ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN``. An earlier download is used if the
    hub cannot be reached.

    Args:
        repository: ``OWNER/NAME``.
        digest: its SHA-256 digest; if empty, the one that the hub states is compared.

    Raises:
        CheckpointError: the file cannot be downloaded, or has another hash.
    """
    # These imports take half a second.
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    shown = f'{name} of {repository} on the Hugging Face hub'
    try:
        try:
            # By itself, the download would try a silent host for minutes.
            stated = hub.get_hf_file_metadata(
                hub.hf_hub_url(repository, name), timeout=TIMEOUT
            )
            if stated.etag and DIGEST.fullmatch(stated.etag):
                digest = digest or stated.etag
            found = hub.hf_hub_download(repository, name, etag_timeout=TIMEOUT)
        except Exception as error:
            try:
                found = hub.hf_hub_download(repository, name, local_files_only=True)
            except LocalEntryNotFoundError:
                raise error from None
    # The exceptions depend on the hub's version and on its HTTP library.
    except Exception as error:
        response = getattr(error, 'response', None)
        reason = one_line(error)
        if response is not None:
            reason = f'HTTP {response.status_code}'
        raise CheckpointError(f'{shown} could not be downloaded ({reason})') from error
    path = Path(found)
    if not sha256(path).startswith(digest):
        path.resolve().unlink()
        raise CheckpointError(
            f'{shown} does not have the expected hash; the download is not kept'
        )
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder if need be, and let one process at a time use it.

    Raises:
        CheckpointError: the folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / '.mmseg_twins.lock').acquire()
    except OSError as error:
        raise CheckpointError(
            f'{folder} cannot be written to ({error.strerror or error}); set '
            'TORCH_HOME to a folder for downloads'
        ) from None
    with held:
        yield


def torch_folder() -> Path:
    """Return the folder in which PyTorch keeps checkpoints."""
    return Path(torch.hub.get_dir(), 'checkpoints')


def file_name(url: str) -> str:
    """Return the name of the file that a URL ends in.

    Raises:
        CheckpointError: it is not an http(s) URL of a file.
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


def download(url: str, path: Path, prefix: str, *, progress: bool) -> None:
    """Download a checkpoint whose SHA-256 digest begins with ``prefix``."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return download_once(url, path, prefix, progress=progress)
        except (BrokenOffError, HTTPException, OSError) as error:
            if attempt == ATTEMPTS or not is_transient(error):
                raise CheckpointError(
                    f'{url} could not be downloaded ({reason_of(error)})'
                ) from None


def reason_of(error: Exception) -> object:
    """Return why a download failed."""
    # The `reason` of an HTTPError does not include the status.
    known = '' if isinstance(error, HTTPError) else getattr(error, 'reason', '')
    return known or error


def is_transient(error: Exception) -> bool:
    """Return whether another attempt at a download may succeed."""
    kinds = (BrokenOffError, ConnectionError, HTTPException)
    return isinstance(error, kinds) or getattr(error, 'code', 0) >= 500


def download_once(url: str, path: Path, prefix: str, *, progress: bool) -> None:
    """Make one attempt at a download."""
    request = Request(url, headers={'User-Agent': f'mmseg_twins/{__version__}'})
    with (
        urlopen(request, timeout=TIMEOUT) as response,
        replacing(path, force=True) as temporary,
    ):
        receive(response, temporary, path.name, progress)
        digest = sha256(temporary)
        if not digest.startswith(prefix):
            raise CheckpointError(
                f'{url} does not have the hash in its name: the SHA-256 begins with '
                f'{digest[: len(prefix)]}, expected {prefix}; the download is not kept'
            )
        file_format(temporary, f'the download from {url}')


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
        raise BrokenOffError(f'it ended after {received} of {size} bytes')
