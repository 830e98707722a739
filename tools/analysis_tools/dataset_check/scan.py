"""Reads images and masks completely, in several processes."""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_check.datasets import IGNORED, LABELS

ORIENTATION = 0x0112  # EXIF's number for how a camera was held
SIDEWAYS = (5, 6, 7, 8)


@dataclass
class Pair:
    """What an image and its mask hold.

    Attributes:
        image: path.
        mask: path.
        has_mask: whether there is a mask at all.
        image_error: why the image cannot be read.
        mask_error: why the mask cannot be read.
        image_size: width and height as training reads them.
        mask_size: width and height.
        sideways: whether the image is turned when it is read, as its EXIF says.
        digest: of the image's bytes.
        format: what a mask must not be: ``'colour'``, ``'grey in colour'``,
            ``'more than 8 bits'`` or ``'JPEG'``; empty for one that is fine.
        counts: pixels of each label in the mask.
    """

    image: Path
    mask: Path
    has_mask: bool = True
    image_error: str = ''
    mask_error: str = ''
    image_size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    sideways: bool = False
    digest: bytes = b''
    format: str = ''
    counts: dict[int, int] = field(default_factory=dict)


def scan(
    pairs: Sequence[tuple[Path, Path]],
    *,
    jobs: int = 1,
    progress: Callable[[int], None] | None = None,
) -> list[Pair]:
    """Reads all of a dataset's files.

    Args:
        pairs: image and mask each.
        jobs: number of processes.
        progress: called with the number of pairs that were read.

    Returns:
        What was found, in the order of ``pairs``.

    Raises:
        BrokenProcessPool: a process was killed, such as for its memory.
    """
    result = []
    with ExitStack() as stack:
        if jobs > 1 and len(pairs) > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(
                    min(jobs, len(pairs)), initializer=leave_interrupts_to_parent
                )
            )
            # Where reading ends early, what has not begun is not waited for.
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            chunk = max(1, min(32, len(pairs) // (4 * jobs)))
            read = pool.map(scan_pair, pairs, chunksize=chunk)
        else:
            read = map(scan_pair, pairs)
        for pair in read:
            result.append(pair)
            if progress is not None:
                progress(len(result))
    return result


def leave_interrupts_to_parent() -> None:
    """Lets Ctrl-C end the program once, not in each of its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def large_images_allowed() -> Iterator[None]:
    """Lets Pillow read aerial images, which it takes for an attack by default."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@large_images_allowed()
def scan_pair(files: tuple[Path, Path]) -> Pair:
    """Reads an image and its mask."""
    pair = Pair(*files)
    # Pillow raises errors of many kinds for what is no picture, or a part of one.
    try:
        read_image(pair)
    except Exception as error:
        pair.image_error = one_line(error)
    pair.has_mask = pair.mask.is_file()
    if pair.has_mask:
        try:
            read_mask(pair)
        except Exception as error:
            pair.mask_error = one_line(error)
    return pair


def read_image(pair: Pair) -> None:
    """Fills in what there is to know of an image."""
    content = pair.image.read_bytes()
    pair.digest = hashlib.blake2b(content, digest_size=16).digest()
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        pair.sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
        width, height = picture.size
    pair.image_size = (height, width) if pair.sideways else (width, height)


def read_mask(pair: Pair) -> None:
    """Fills in what there is to know of a mask."""
    with Image.open(pair.mask) as picture:
        picture.load()
        pair.mask_size = picture.size
        if picture.format == 'JPEG':
            pair.format = 'JPEG'
        if picture.mode in ('L', 'P'):
            counts = np.array(picture.histogram())
        else:
            counts = count_labels(np.asarray(picture), pair)
    pair.counts = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}


def count_labels(array: np.ndarray, pair: Pair) -> np.ndarray:
    """Counts the labels of a mask that is not simply 8 bits a pixel."""
    if array.ndim == 3:
        colours = array[..., :3]
        grey = bool((colours == colours[..., :1]).all())
        pair.format = 'grey in colour' if grey else 'colour'
        return np.zeros(LABELS, np.int64)
    if array.min() < 0 or array.max() > IGNORED or array.dtype.kind == 'f':
        pair.format = 'more than 8 bits'
        return np.zeros(LABELS, np.int64)
    return np.bincount(array.ravel().astype(np.uint8), minlength=LABELS)


def one_line(error: Exception) -> str:
    """What an error says, without the memory addresses that Pillow's have."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return 'no picture' if text.startswith('cannot identify image') else text
