"""What a conversion found and did."""

from __future__ import annotations

from dataclasses import dataclass

from .models import Heads

CONFIGS = {
    # head, whether in SSSegmentation's setting: the config, after its variant
    ('uperhead', False): 'uperhead_8x2_512x512_160k_ade20k',
    ('uperhead', True): 'uperhead_8x2_512x512_130e_ade20k',
    ('fpn', False): 'fpn_fpnhead_8x4_512x512_80k_ade20k',
}
# The width of the heads in configs: decode head, auxiliary head.
CONFIG_WIDTHS = {
    ('uperhead', False): (512, 256),
    ('uperhead', True): (512, 512),
    ('fpn', False): (128, None),
}
CONFIG_NECK_WIDTH = 256
ADE20K_CLASSES = 150
SSSEG_AUXILIARY_CHANNELS = 512
NAMED = 4  # how many names a line of the table holds


@dataclass(frozen=True)
class Report:
    """What a conversion found and did; ``str()`` gives it as a short table.

    Attributes:
        found: what the source is, such as ``'official classifier'``.
        variant: such as ``'svt-s'``.
        written: what the result is, such as ``'mmsegmentation backbone'``.
        heads: a segmentor's heads; None for a backbone.
        unchanged: number of tensors that keep their name.
        renamed: number of tensors that get another name.
        merged: number of source tensors that were concatenated to fewer.
        split: number of target tensors that are parts of a source tensor.
        dropped: source names that have no place in the result.
        missing: names of the result that the source has nothing for.
        verified: what was checked.
        source: where the checkpoint was read: path or URL.
        source_sha256: hexadecimal digest of the file that was read.
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

    @property
    def values_verified(self) -> bool:
        """Return whether there were values to look at, and not just shapes."""
        return len(self.verified) > 2

    def config(self) -> str | None:
        """The name of the config whose model a converted segmentor is."""
        if self.heads is None or self.written.startswith('official'):
            return None
        kind = self.heads.kind
        ssseg = self.heads.auxiliary_channels == SSSEG_AUXILIARY_CHANNELS
        name = CONFIGS.get((kind, ssseg))
        fits = kind == 'uperhead' or (
            self.heads.auxiliary_channels is None
            and self.heads.neck_channels == CONFIG_NECK_WIDTH
        )
        if name is None or not fits:
            return None
        if self.variant == 'pcpvt-s' and not ssseg:
            name = name.replace('8x2', '8x4')
        return f'twins_{self.variant}_{name}.py'

    def options(self) -> list[str]:
        """What has to be set in :meth:`config` for this segmentor's heads."""
        if self.config() is None:
            return []
        kind = self.heads.kind
        ssseg = self.heads.auxiliary_channels == SSSEG_AUXILIARY_CHANNELS
        channels, auxiliary = CONFIG_WIDTHS[kind, ssseg]
        if self.variant == 'pcpvt-s' and ssseg:
            channels = 1024
        options = []
        if self.heads.channels != channels:
            options.append(f'model.decode_head.channels={self.heads.channels}')
        if self.heads.num_classes != ADE20K_CLASSES:
            options.append(f'model.decode_head.num_classes={self.heads.num_classes}')
        if self.heads.auxiliary_channels is None:
            if auxiliary is not None:
                options.append('model.auxiliary_head=None')
            return options
        if self.heads.auxiliary_channels != auxiliary:
            options.append(
                f'model.auxiliary_head.channels={self.heads.auxiliary_channels}'
            )
        if self.heads.num_classes != ADE20K_CLASSES:
            options.append(f'model.auxiliary_head.num_classes={self.heads.num_classes}')
        return options

    def use(self) -> str | None:
        """How the file is used, in a line."""
        if self.target is None:
            return None
        if self.written == 'official segmentor':
            return "the official code's segmentation"
        if self.written == 'official backbone':
            return 'the official code and timm, load_state_dict(..., strict=False)'
        if self.heads is None:
            return f"init_cfg=dict(type='Pretrained', checkpoint={self.target!r})"
        config = self.config()
        if config is None:
            return (
                'a config of yours with these heads; no config of this package has them'
            )
        options = ' '.join(self.options())
        options = f' --cfg-options {options}' if options else ''
        return (
            f'mim test mmsegmentation configs/{config} --checkpoint {self.target}'
            f'{options}'
        )

    def __str__(self) -> str:
        rows = {
            'found': f'{self.found}, {self.variant}',
            'source': self.source,
            'sha256': self.source_sha256,
            'result': self.written,
            'unchanged': str(self.unchanged),
            'renamed': str(self.renamed),
            'merged': str(self.merged),
            'split': str(self.split) if self.split else None,
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
    """How many names there are, and the first of them."""
    if not names:
        return '0'
    more = ', ...' if len(names) > NAMED else ''
    return f'{len(names)} ({", ".join(names[:NAMED])}{more})'
