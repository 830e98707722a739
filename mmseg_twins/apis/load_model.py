"""Load a segmentor from a name, a folder, the Hugging Face hub or a config."""

from __future__ import annotations

import re
from pathlib import Path

from mmengine.config import Config

from ..checkpoints.downloading import fetch_from_hub
from ..checkpoints.weights import SCHEME, WEIGHTS, find_weights, is_name
from ..errors import SettingError
from .configs import find_config, read_plain_config, resolve_config
from .prediction import Predictor
from .sharing import CONFIG_FILE, WEIGHTS_FILE

REPOSITORY = re.compile(r'[\w.-]+/[\w.-]+')


def load_model(
    source: str | Path | Config, checkpoint: str | Path | None = None, **options
) -> Predictor:
    """Load a segmentor for prediction, with its classes, palette and preprocessing.

    Args:
        source: one of

            * the name of published weights, such as ``'upernet-svt-s-ade20k'``
              (``mmseg-twins weights`` lists them);
            * a folder written by :meth:`~.Predictor.save_pretrained`;
            * a repository on the Hugging Face hub, ``'OWNER/NAME'``;
            * a config (its path, or the name of one of the package's), with a
              ``checkpoint``.
        checkpoint: path, URL or name of the weights for a config.
        options: of the :class:`~.Predictor`, such as ``device='cpu'``, ``window=512``
            or ``confidence=True``.

    Raises:
        SettingError: there is no such source, or it is a backbone.
        CheckpointError: the weights cannot be downloaded or read, or do not fit.

    Example:
        >>> from mmseg_twins.apis import load_model
        >>> model = load_model('upernet-svt-s-ade20k')
        >>> labels = model.predict('photo.jpg').labels
        >>> model.classes[labels[0, 0]]
        'sky'
    """
    if checkpoint is None:
        cfg, checkpoint = find_segmentor(source)
    else:
        cfg = read_config(source)
    return Predictor(cfg, checkpoint, **options)


def is_segmentor(source: str | Path) -> bool:
    """Return whether a source, by its name or a folder, includes a config."""
    name = str(source)
    return is_name(name) or name in WEIGHTS or Path(name).is_dir()


def find_segmentor(source: object) -> tuple[Config, str | Path]:
    """Return the config and the checkpoint of a source that includes both.

    Raises:
        SettingError: the source is none of the first three of :func:`load_model`.
        CheckpointError: a repository's files cannot be downloaded.
    """
    name = str(source)
    folder = Path(name)
    if folder.is_dir():
        missing = [
            one for one in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / one).is_file()
        ]
        if missing:
            raise SettingError(
                f'the folder {name!r} has no {" and no ".join(missing)}; give one '
                'written by save_pretrained'
            )
        return read_plain_config(folder / CONFIG_FILE), folder / WEIGHTS_FILE
    if is_name(name) or name in WEIGHTS:
        weights = find_weights(name)
        config = find_config(weights.config)
        if weights.heads is None or config is None:
            raise SettingError(
                f'{SCHEME}{weights.name} is a backbone, which cannot predict; '
                f'{SCHEME}upernet-{weights.variant}-ade20k is a segmentor with it'
            )
        return Config.fromfile(config), f'{SCHEME}{weights.name}'
    if REPOSITORY.fullmatch(name) and not folder.exists():
        config = fetch_from_hub(name, CONFIG_FILE)
        return read_plain_config(config), fetch_from_hub(name, WEIGHTS_FILE)
    raise SettingError(
        f'{name!r} is not a segmentor: give a name that `mmseg-twins weights` lists, a '
        'folder, a repository on the Hugging Face hub, or a config with a checkpoint'
    )


def read_config(source: str | Path | Config) -> Config:
    """Return a config, given itself, its path, or its name."""
    if isinstance(source, Config):
        return source
    return Config.fromfile(resolve_config(str(source)))
