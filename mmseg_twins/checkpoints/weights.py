"""The published weights: their names, files and results.

``twins://NAME``, such as ``twins://svt-s``, stands for these weights wherever a
checkpoint is expected; :mod:`.locating` downloads and converts them. The backbones are
the paper's ImageNet-1k classifiers. Results are mIoU on ADE20K's validation split as
their authors report them; nothing was measured with this package.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..errors import SettingError

SCHEME = 'twins://'
HUB = 'hf://'  # in front of the repository and file on the Hugging Face hub

TIMM = (
    'https://github.com/rwightman/pytorch-image-models/releases/download/'
    'v0.1-vt3p-weights/'
)
SSSEGMENTATION = (
    'https://github.com/SegmentationBLWX/modelstore/releases/download/ssseg_twins/'
)
# mmsegmentation's files lie under the same names at the mirror of the onedl fork.
MMSEGMENTATION = (
    'https://mmassets.onedl.ai/mmsegmentation/v0.5/',
    'https://download.openmmlab.com/mmsegmentation/v0.5/',
)
LICENSE = 'Apache-2.0'  # of timm's repositories, mmsegmentation and SSSegmentation


@dataclass(frozen=True)
class File:
    """A published file.

    Attributes:
        url: an http(s) URL, or ``hf://OWNER/REPOSITORY/FILE``.
        sha256: the file's hexadecimal digest; empty if its authors publish none. The
            name may include the beginning of it, such as ``-7e1c3695.pth``.
    """

    url: str
    sha256: str = ''

    @property
    def name(self) -> str:
        """Return the file's name."""
        return self.url.rpartition('/')[2]


@dataclass(frozen=True)
class Weights:
    """Published weights.

    Attributes:
        name: such as ``'svt-s'`` or ``'upernet-svt-s-ade20k'``.
        variant: such as ``'svt-s'``.
        heads: ``'uperhead'`` or ``'fpn'``, as in the names of configs; None for a
            backbone.
        files: the sources, in the order in which they are tried.
        config: name of the segmentor's config; for a backbone, of the config with which
            its result was reached.
        author: who reports the result.
        miou: mIoU in percent, at a single scale.
        miou_tta: mIoU in percent with several scales and flips; None if not reported.
    """

    name: str
    variant: str
    heads: str | None
    files: tuple[File, ...]
    config: str
    author: str
    miou: float
    miou_tta: float | None = None

    @property
    def file_names(self) -> tuple[str, ...]:
        """Return the names under which users may provide the file themselves."""
        published = [file.name for file in self.files if not file.url.startswith(HUB)]
        return tuple(
            dict.fromkeys((f'{self.name}.safetensors', f'{self.name}.pth', *published))
        )


# Aligned tables read better than short lines.
# ruff: noqa: E501
# fmt: off
BACKBONES = {
    #           timm's name, hash on GitHub  SHA-256 on the Hugging Face hub                                       mmsegmentation's file
    'pcpvt-s': ('pcpvt_small', 'e70e7e7a',   '',                                                                  'pcpvt_small_20220308-e638c41c'),
    'pcpvt-b': ('pcpvt_base',  'e5ecb09b',   '5722f0d29662fd5ff69a21701caaf5feebd1d657adb62391a75798c43b37760f', 'pcpvt_base_20220308-0621964c'),
    'pcpvt-l': ('pcpvt_large', 'd273f802',   '423acdd738d41f7ed50bbafbfbf3e50f6ea098b5704bb749a969f1992ddd84c3', 'pcpvt_large_20220308-37579dc6'),
    'svt-s':   ('svt_small',   '42e5f78c',   '46e4bd7b30ae9ae3f2e9ec4fb669439c5f9676c6bc787687923424d704a06c1a', 'alt_gvt_small_20220308-7e1c3695'),
    'svt-b':   ('svt_base',    'c2265010',   '',                                                                  'alt_gvt_base_20220308-1b7eb711'),
    'svt-l':   ('svt_large',   '90f6aaa9',   '2fbe754f6e595bd07294f381302e0b3f1d449176977e35e4f30200fe4f3bcf97', 'alt_gvt_large_20220308-fb5936f3'),
}
# mmsegmentation's segmentors: end of the file's name, mIoU, mIoU with several scales and flips.
UPERNETS = {
    'pcpvt-s': ('20211201_233537-8e99c07a', 46.04, 46.92),
    'pcpvt-b': ('20211130_141020-02094ea5', 47.91, 48.64),
    'pcpvt-l': ('20211201_075053-c6095c07', 49.35, 50.08),
    'svt-s':   ('20211130_141005-e48a2d94', 46.08, 46.96),
    'svt-b':   ('20211202_040826-0943a1f1', 48.04, 48.87),
    'svt-l':   ('20211130_141005-3e2cae61', 49.65, 50.63),
}
SEMANTIC_FPNS = {
    'pcpvt-s': ('20211201_204132-41acd132', 43.26, 44.11),
    'pcpvt-b': ('20211130_141019-d396db72', 45.66, 46.48),
    'pcpvt-l': ('20211201_105226-bc6d61dc', 45.94, 46.70),
    'svt-s':   ('20211130_141006-0a0d3317', 44.47, 45.42),
    'svt-b':   ('20211201_113849-88b2907c', 46.77, 47.47),
    'svt-l':   ('20211130_141005-1d59bee2', 46.55, 47.74),
}
# SSSegmentation's UPerNets: mIoU.
SSSEGMENTATION_UPERNETS = {
    'pcpvt-s': 46.07, 'pcpvt-b': 48.06, 'pcpvt-l': 49.35,
    'svt-s':   46.16, 'svt-b':   48.05, 'svt-l':   49.80,
}
# fmt: on


def backbone(variant: str) -> Weights:
    """Return a variant's ImageNet-1k weights."""
    timm, short_hash, sha256, published = BACKBONES[variant]
    _, miou, miou_tta = UPERNETS[variant]
    files = (
        File(f'{HUB}timm/twins_{timm}.in1k/model.safetensors', sha256),
        File(f'{TIMM}twins_{timm}-{short_hash}.pth'),
        *(File(f'{host}pretrain/twins/{published}.pth') for host in MMSEGMENTATION),
    )
    config = upernet_config(variant)
    return Weights(
        variant, variant, None, files, config, 'mmsegmentation', miou, miou_tta
    )


def mmsegmentation_segmentor(variant: str, heads: str) -> Weights:
    """Return one of mmsegmentation's segmentors."""
    if heads == 'uperhead':
        name, config = f'upernet-{variant}-ade20k-160k', upernet_config(variant)
        stamp, miou, miou_tta = UPERNETS[variant]
    else:
        name = f'fpn-{variant}-ade20k-80k'
        config = f'twins_{variant}_fpn_fpnhead_8x4_512x512_80k_ade20k.py'
        stamp, miou, miou_tta = SEMANTIC_FPNS[variant]
    stem = config.removesuffix('.py')
    path = f'twins/{stem}/{stem}_{stamp}.pth'
    files = tuple(File(f'{host}{path}') for host in MMSEGMENTATION)
    return Weights(
        name, variant, heads, files, config, 'mmsegmentation', miou, miou_tta
    )


def sssegmentation_segmentor(variant: str) -> Weights:
    """Return one of SSSegmentation's segmentors."""
    timm = BACKBONES[variant][0].replace('_', '')
    return Weights(
        f'upernet-{variant}-ade20k',
        variant,
        'uperhead',
        (File(f'{SSSEGMENTATION}upernet_{timm}_ade20k_train.pth'),),
        f'twins_{variant}_uperhead_8x2_512x512_130e_ade20k.py',
        'SSSegmentation',
        SSSEGMENTATION_UPERNETS[variant],
    )


def upernet_config(variant: str) -> str:
    """Return the name of a variant's UPerNet config of 160k iterations."""
    batch = '8x4' if variant == 'pcpvt-s' else '8x2'
    return f'twins_{variant}_uperhead_{batch}_512x512_160k_ade20k.py'


WEIGHTS = {
    weights.name: weights
    for weights in (
        *map(backbone, BACKBONES),
        *map(sssegmentation_segmentor, BACKBONES),
        *(mmsegmentation_segmentor(variant, 'uperhead') for variant in BACKBONES),
        *(mmsegmentation_segmentor(variant, 'fpn') for variant in BACKBONES),
    )
}


def is_name(source: str) -> bool:
    """Return whether a source is a name of published weights, right or wrong."""
    return source.startswith(SCHEME)


def find_weights(name: str) -> Weights:
    """Return the weights with a name, which may begin with ``twins://``.

    Raises:
        SettingError: there is no such name; the message suggests similar ones.
    """
    short = name.removeprefix(SCHEME)
    if short not in WEIGHTS:
        similar = difflib.get_close_matches(short, WEIGHTS, n=3, cutoff=0.5)
        proposed = ' or '.join(f'{SCHEME}{one}' for one in similar)
        hint = f'; did you mean {proposed}?' if similar else ''
        raise SettingError(
            f'there are no published weights named {name!r}{hint}; `mmseg-twins '
            'weights` lists all names'
        )
    return WEIGHTS[short]
