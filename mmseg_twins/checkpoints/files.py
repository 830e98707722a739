"""From a checkpoint file to a verified checkpoint file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from ..version import __version__
from .atomic import check_writable
from .conversion import convert_state_dict
from .download import fetch, is_url
from .errors import ConversionError
from .reading import Source, read_source, sha256
from .report import Report
from .writing import SUFFIXES, write_checkpoint


def convert_checkpoint(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    to: str = 'mmseg',
    arch: str | None = None,
    use_ema: bool = False,
    backbone_only: bool = False,
    force: bool = False,
    progress: bool = False,
) -> Report:
    """Converts a Twins checkpoint; writes nothing unless all checks hold.

    Args:
        source: a path, or a URL, which is downloaded to PyTorch's cache: a file of
            PyTorch's or in the safetensors format. It is read without letting
            anything in it run.
        target: the file to write, ending in ``.pth`` or ``.safetensors``. It gets
            ``meta`` (see :func:`describe`) and ``state_dict``, and is there complete
            or not at all.
        to: see :func:`~.conversion.convert_state_dict`, as for ``arch`` and
            ``backbone_only``.
        arch: the variant that it must be.
        use_ema: whether to take the averaged weights of ``model_ema``.
        backbone_only: whether to leave a segmentor's heads.
        force: whether to replace ``target`` if it exists.
        progress: whether to show the progress of a download on stderr.

    Returns:
        What was found and done; ``print`` shows it as a table.

    Raises:
        ConversionError: the source is no checkpoint of Twins that can be verified, or
            is the target itself.
        OSError: the source cannot be read, or the target cannot be written.
        ValueError: an argument has a value that is not allowed.

    Example:
        >>> from mmseg_twins.checkpoints import convert_checkpoint
        >>> print(convert_checkpoint('alt_gvt_small.pth', 'svt-s.pth'))
    """
    source, target = os.fspath(source), Path(target)
    check_not_the_same(source, target)
    check_writable(target, force=force, suffixes=SUFFIXES)
    path = fetch(source, progress=progress) if is_url(source) else Path(source)
    check_not_the_same(path, target)
    loaded = read_source(path, use_ema=use_ema)
    digest = sha256(path)
    try:
        state, report = convert_state_dict(
            loaded.state, to=to, arch=arch, backbone_only=backbone_only
        )
    except ConversionError as error:
        raise ConversionError(f'{path}: {error}') from None
    except RuntimeError as error:
        if 'allocate memory' not in str(error):
            raise
        raise MemoryError(str(error)) from None
    if not report.values_verified:
        raise ConversionError(f'{path} has shapes but no values (meta device)')
    report = dataclasses.replace(
        report, source=source, source_sha256=digest, target=str(target)
    )
    write_checkpoint(target, state, describe(report, loaded), force=force)
    return report


def check_not_the_same(source: str | Path, target: Path) -> None:
    """Checks that the source would not be replaced by what is made from it.

    Raises:
        ConversionError: it would.
    """
    if is_url(str(source)) or not Path(source).exists() or not target.exists():
        return
    if os.path.samefile(source, target):
        raise ConversionError(
            f'{target} is the checkpoint that is read; give another file to write'
        )


def describe(report: Report, source: Source) -> dict:
    """What a written file says about itself, in plain Python values.

    Args:
        report: what was found and done.
        source: what was read; the classes of a segmentor are taken over from it.

    Returns:
        ``source`` (name), ``source_sha256``, ``layout``, ``variant``, ``tool``,
        ``wrapper``, ``dropped`` and ``missing`` (names), ``left_out`` (the file's
        other entries, such as the optimizer) and, if the source has them,
        ``dataset_meta`` with ``classes`` and ``palette`` as mmengine writes them.
    """
    meta = {
        'source': report.source,
        'source_sha256': report.source_sha256,
        'layout': report.found,
        'variant': report.variant,
        'tool': f'mmseg_twins {__version__}',
        'wrapper': source.wrapper,
        'dropped': list(report.dropped),
        'missing': list(report.missing),
        'left_out': list(source.others),
    }
    dataset = dataset_meta(source.meta)
    if dataset and report.heads is not None:
        meta['dataset_meta'] = dataset
    return meta


def dataset_meta(meta: Mapping) -> dict:
    """Class names and colours of mmengine's, or mmcv 1.x's, ``meta``."""
    modern = meta.get('dataset_meta')
    found = modern if isinstance(modern, Mapping) else {}
    classes = found.get('classes', meta.get('CLASSES'))
    palette = found.get('palette', meta.get('PALETTE'))
    result = {}
    if is_list_of(classes, str):
        result['classes'] = list(classes)
    if isinstance(palette, (list, tuple)) and all(
        is_list_of(colour, int) for colour in palette
    ):
        result['palette'] = [list(colour) for colour in palette]
    return result


def is_list_of(value: object, kind: type) -> bool:
    """Whether a value is a list or tuple of one kind of plain values."""
    return isinstance(value, (list, tuple)) and all(
        type(item) is kind for item in value
    )
