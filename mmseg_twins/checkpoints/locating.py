"""Find a checkpoint: a path, a URL, or the name of published weights.

Published weights are downloaded, converted to mmsegmentation's layout and verified
once, and kept as ``$TORCH_HOME/hub/checkpoints/mmseg_twins/NAME.safetensors``. On
machines without internet, put the published file, or the one that ``mmseg-twins weights
NAME --to FOLDER`` writes elsewhere, into the folder ``$MMSEG_TWINS_WEIGHTS`` or
``$TORCH_HOME/hub/checkpoints``.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ..errors import CheckpointError
from .conversion import convert_checkpoint
from .downloading import (
    fetch,
    fetch_from_hub,
    file_name,
    is_url,
    locked,
    torch_folder,
)
from .reading import sha256
from .weights import HUB, SCHEME, WEIGHTS, File, Weights, find_weights, is_name

FOLDER_VARIABLE = 'MMSEG_TWINS_WEIGHTS'


def locate(
    source: str | Path, folder: Path | None = None, *, progress: bool = True
) -> Path:
    """Return the path of a checkpoint, and download it if need be.

    Args:
        source: a path, an http(s) URL, or the name of published weights such as
            ``twins://svt-s``.
        folder: where to keep a download from a URL; PyTorch's cache by default.
        progress: whether to show the progress of a download on stderr.

    Raises:
        SettingError: there are no published weights of that name.
        CheckpointError: the checkpoint could not be downloaded or converted.
    """
    source = str(source)
    if is_name(source):
        return obtain(find_weights(source), progress=progress)
    if not is_url(source):
        return Path(source)
    try:
        return fetch(source, folder, progress=progress)
    except CheckpointError as error:
        name = file_name(source)
        known = [one.name for one in WEIGHTS.values() if name in one.file_names]
        if not known:
            raise
        raise CheckpointError(
            f'{error}; {SCHEME}{known[0]} names the same weights and has other sources '
            'too'
        ) from None


def obtain(weights: Weights, *, progress: bool = True) -> Path:
    """Return the path of published weights in mmsegmentation's layout.

    Args:
        progress: whether to show the progress of a download on stderr.

    Raises:
        CheckpointError: no source has them; the message gives the reason of each.
    """
    with locked(kept_folder()):
        provided = provided_file(weights)
        if provided is None:
            path = kept_file(weights)
            if not path.exists():
                download(weights, path, progress=progress)
        else:
            digest = sha256(provided)[:8]
            path = kept_folder() / f'{weights.name}-{digest}.safetensors'
            if not path.exists():
                convert(provided, path, weights, origin=str(provided))
    return path


def kept_folder() -> Path:
    """Return the folder in which converted weights are kept."""
    return torch_folder() / 'mmseg_twins'


def kept_file(weights: Weights) -> Path:
    """Return the path of weights that were downloaded and converted."""
    return kept_folder() / f'{weights.name}.safetensors'


def provided_file(weights: Weights) -> Path | None:
    """Return the file that a user has provided for published weights, if any."""
    given = os.environ.get(FOLDER_VARIABLE)
    for folder in filter(None, (given and Path(given), torch_folder())):
        for name in weights.file_names:
            if (folder / name).is_file():
                return folder / name
    return None


def download(weights: Weights, path: Path, *, progress: bool) -> None:
    """Download and convert published weights from the first source that has them."""
    reasons = []
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for file in weights.files:
            if progress:
                print(f'{SCHEME}{weights.name}: trying {file.url}', file=sys.stderr)
            try:
                found = fetch_file(file, Path(folder), progress=progress)
                convert(found, path, weights, origin=file.url)
                return
            except CheckpointError as error:
                reasons.append(str(error))
    place = Path(os.environ.get(FOLDER_VARIABLE) or torch_folder())
    scratch = '' if weights.heads else ', or set init_cfg=None for random weights'
    raise CheckpointError(
        f'{SCHEME}{weights.name} could not be downloaded: {"; ".join(reasons)}; on a '
        f'machine with internet, run `mmseg-twins weights {weights.name} --to FOLDER`, '
        f'and copy its file {weights.file_names[0]} to {place}{scratch}'
    )


def fetch_file(file: File, folder: Path, *, progress: bool) -> Path:
    """Download one file to a folder, or to the cache of the Hugging Face hub."""
    if file.url.startswith(HUB):
        repository, _, name = file.url.removeprefix(HUB).rpartition('/')
        return fetch_from_hub(repository, name, file.sha256)
    return fetch(file.url, folder, progress=progress)


def convert(found: Path, path: Path, weights: Weights, *, origin: str) -> None:
    """Convert a file to mmsegmentation's layout; check that it has the right heads."""
    report = convert_checkpoint(
        found,
        path,
        variant=weights.variant,
        backbone_only=weights.heads is None,
        force=True,
        origin=origin,
    )
    heads = report.heads.kind if report.heads else None
    if heads != weights.heads:
        path.unlink()
        raise CheckpointError(
            f'{origin} is {report.found} without the heads of {SCHEME}{weights.name}'
        )
