"""Save segmentors as folders, and upload them to the Hugging Face hub.

A folder has ``model.safetensors`` (weights, classes and palette), ``config.py`` (the
resolved config, plain values only) and ``README.md`` (the model card). Loading it runs
no code in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmengine.config import Config
from torch import Tensor

from ..checkpoints.reading import one_line
from ..checkpoints.writing import check_writable, replacing, write_checkpoint
from ..version import __version__

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = 'model.safetensors', 'config.py', 'README.md'
CARD = """\
# {title}

A semantic segmentor with the backbone {backbone}, for mmseg_twins {version}.

```python
from mmseg_twins.apis import load_model

model = load_model('{repository}')
labels = model.predict('photo.jpg').labels
```

It predicts {count} classes: {classes}.

The config in this repository is the resolved config of its training. Please add the
training data, the results and the license.
"""


class SharingError(RuntimeError):
    """The hub refuses an upload or cannot be reached; the message says why."""


def save_segmentor(
    folder: Path,
    state: Mapping[str, Tensor],
    cfg: Config,
    dataset_meta: Mapping,
    *,
    repository: str,
    force: bool,
) -> None:
    """Write a segmentor's three files.

    Args:
        folder: created if it does not exist.
        dataset_meta: ``classes`` and ``palette``.
        repository: name for the model card.
        force: whether existing files may be replaced.

    Raises:
        OSError: a file exists without ``force``, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE):
        check_writable(folder / name, force=force)
    meta = {'dataset_meta': dict(dataset_meta), 'tool': f'mmseg_twins {__version__}'}
    write_checkpoint(folder / WEIGHTS_FILE, state, meta, force=force)
    with replacing(folder / CONFIG_FILE, force=force) as temporary:
        temporary.write_text(cfg.pretty_text, encoding='utf-8')
    with replacing(folder / CARD_FILE, force=force) as temporary:
        temporary.write_text(model_card(cfg, dataset_meta, repository), 'utf-8')


def model_card(cfg: Config, dataset_meta: Mapping, repository: str) -> str:
    """Return the text of a model card, for users to complete."""
    from huggingface_hub import ModelCardData

    backbone = cfg.model.get('module', cfg.model).backbone
    data = ModelCardData(
        library_name='mmseg_twins',
        pipeline_tag='image-segmentation',
        tags=['semantic-segmentation', 'mmsegmentation', 'twins'],
    )
    arch = f' ({backbone.arch})' if backbone.get('arch') else ''
    text = CARD.format(
        title=repository.rpartition('/')[2],
        backbone=f'{backbone.type.rpartition(".")[2]}{arch}',
        version=__version__,
        repository=repository,
        count=len(dataset_meta['classes']),
        classes=', '.join(dataset_meta['classes']),
    )
    return f'---\n{data.to_yaml()}\n---\n\n{text}'


def upload_segmentor(folder: Path, repository: str, *, private: bool) -> str:
    """Upload a segmentor's files, and return the URL of the repository.

    Args:
        folder: written by :func:`save_segmentor`.
        repository: ``OWNER/NAME`` on the hub; created if it does not exist.
        private: whether a new repository is private.

    Raises:
        SharingError: the hub refuses the upload or cannot be reached.
    """
    import huggingface_hub as hub

    api = hub.HfApi(library_name='mmseg_twins', library_version=__version__)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message='Upload a segmentor'
        )
    # The exceptions depend on the hub's version and on its HTTP library.
    except Exception as error:
        raise SharingError(
            f'{repository} could not be uploaded to the Hugging Face hub '
            f'({one_line(error)}); log in with `hf auth login`, or set HF_TOKEN'
        ) from error
    return str(url)
