"""The report of a conversion."""

from __future__ import annotations

from dataclasses import dataclass

from ..state_dicts import some
from .models import Heads
from .weights import upernet_config

CLASSES = 150  # of ADE20K, which the configs are for


@dataclass(frozen=True)
class Report:
    """The source and the result of a conversion; ``str()`` makes a short table of it.

    Attributes:
        found: the source's layout, such as ``'official classifier'``.
        variant: such as ``'svt-s'``.
        written: the result's layout, such as ``'mmsegmentation backbone'``.
        heads: a segmentor's heads; None for a backbone.
        unchanged: number of tensors that keep their name.
        renamed: number of tensors that get another name.
        merged: number of source tensors that were concatenated.
        split: number of target tensors that are parts of a source tensor.
        dropped: names of source tensors that are not in the result.
        missing: names of the model's tensors that the source does not have.
        verified: what was checked.
        source: path or URL of the checkpoint.
        source_sha256: hexadecimal digest of its file.
        target: path of the file that was written.
    """

    found: str
    variant: str
    written: str
    heads: Heads | None
    unchanged: int
    renamed: int
    merged: int
    split: int
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    verified: tuple[str, ...]
    source: str | None = None
    source_sha256: str | None = None
    target: str | None = None

    def config(self) -> str | None:
        """Return the name of a converted segmentor's config; None if there is none."""
        if self.heads is None or self.written.startswith('official'):
            return None
        ours = self.config_heads()
        if self.heads.kind == 'uperhead':
            if ours.auxiliary_channels == 512:
                return f'twins_{self.variant}_uperhead_8x2_512x512_130e_ade20k.py'
            return upernet_config(self.variant)
        if (self.heads.auxiliary_channels, self.heads.neck_channels) != (None, 256):
            return None
        return f'twins_{self.variant}_fpn_fpnhead_8x4_512x512_80k_ade20k.py'

    def config_heads(self) -> Heads:
        """Return the heads of that config; a UPerNet's auxiliary head decides."""
        if self.heads.kind == 'fpn':
            return Heads('fpn', 128, CLASSES, None, 256)
        if self.heads.auxiliary_channels == 512:  # SSSegmentation's setting
            width = 1024 if self.variant == 'pcpvt-s' else 512
            return Heads('uperhead', width, CLASSES, 512)
        return Heads('uperhead', 512, CLASSES, 256)

    def options(self) -> list[str]:
        """Return the ``--cfg-options`` that give :meth:`config` these heads."""
        if self.config() is None:
            return []
        heads, ours = self.heads, self.config_heads()
        settings: list[tuple[str, int | None, int | None]] = [
            ('decode_head.channels', heads.channels, ours.channels),
            ('decode_head.num_classes', heads.num_classes, CLASSES),
        ]
        if heads.auxiliary_channels:
            width, usual = heads.auxiliary_channels, ours.auxiliary_channels
            settings += [
                ('auxiliary_head.channels', width, usual),
                ('auxiliary_head.num_classes', heads.num_classes, CLASSES),
            ]
        elif ours.auxiliary_channels:
            settings.append(('auxiliary_head', None, ours.auxiliary_channels))
        return [
            f'model.{name}={value}' for name, value, usual in settings if value != usual
        ]

    def use(self) -> str | None:
        """Return a line on how to use the written file; None without a file."""
        if self.target is None:
            return None
        if self.written == 'official segmentor':
            return "the official code's segmentation"
        if self.written == 'official backbone':
            return 'the official code and timm, load_state_dict(..., strict=False)'
        if self.heads is None:
            return f"init_cfg=dict(type='Pretrained', checkpoint={self.target!r})"
        if self.config() is None:
            return 'a config of your own; none of the package has these heads'
        options = ' '.join(self.options())
        options = f' --cfg-options {options}' if options else ''
        return (
            f'mim test mmsegmentation configs/{self.config()} --checkpoint '
            f'{self.target}{options}'
        )

    def __str__(self) -> str:
        rows = {
            'found': f'{self.found}, {self.variant}',
            'source': self.source,
            'sha256': self.source_sha256,
            'result': self.written,
            'unchanged': self.unchanged,
            'renamed': self.renamed,
            'merged': self.merged,
            'split': self.split or None,
            'dropped': listed(self.dropped),
            'missing': listed(self.missing),
            'verified': ', '.join(self.verified),
            'use': self.use(),
            'written to': self.target,
        }
        width = max(map(len, rows))
        return '\n'.join(
            f'{name:<{width}}  {value}'
            for name, value in rows.items()
            if value is not None
        )


def listed(names: tuple[str, ...]) -> str:
    """Return the number of names and the first of them."""
    return f'{len(names)} ({some(names)})' if names else '0'
