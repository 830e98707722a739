"""The layouts of Twins checkpoints, and the tables that convert their names.

There is one table per pair of layouts. From left to right it converts to mmsegmentation
1.x, from right to left it converts back. :mod:`.patterns` explains the slots in braces
and applies the tables.

Sources: Meituan-AutoML/Twins ``gvt.py`` (timm's names are the same), SSSegmentation
``modules/models/segmentors/upernet`` and ``modules/backbones/twins.py``,
mmsegmentation 1.2.2 ``models/backbones/twins.py``, ``decode_heads/uper_head.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from .patterns import Rule, rename

# fmt: off
OFFICIAL_BACKBONE = (
    #      official                          mmsegmentation
    rename('patch_embeds.{i}.proj.{p}',      'patch_embeds.{i}.projection.{p}'),
    rename('patch_embeds.{i}.norm.{p}',      'patch_embeds.{i}.norm.{p}'),
    rename('pos_block.{i}.proj.0.{p}',       'position_encodings.{i}.proj.{p}'),
    rename('blocks.{i}.{j}.norm1.{p}',       'layers.{i}.{j}.norm1.{p}'),
    rename('blocks.{i}.{lsa}.attn.qkv.{p}',  'layers.{i}.{lsa}.attn.qkv.{p}'),
    rename('blocks.{i}.{lsa}.attn.proj.{p}', 'layers.{i}.{lsa}.attn.proj.{p}'),
    Rule(('blocks.{i}.{gsa}.attn.q.{p}',
          'blocks.{i}.{gsa}.attn.kv.{p}'),   'layers.{i}.{gsa}.attn.attn.in_proj_{p}',
         shares=(1, 2)),
    rename('blocks.{i}.{gsa}.attn.proj.{p}', 'layers.{i}.{gsa}.attn.attn.out_proj.{p}'),
    rename('blocks.{i}.{gsa}.attn.sr.{p}',   'layers.{i}.{gsa}.attn.sr.{p}'),
    rename('blocks.{i}.{gsa}.attn.norm.{p}', 'layers.{i}.{gsa}.attn.norm.{p}'),
    rename('blocks.{i}.{j}.norm2.{p}',       'layers.{i}.{j}.norm2.{p}'),
    rename('blocks.{i}.{j}.mlp.fc1.{p}',     'layers.{i}.{j}.ffn.layers.0.0.{p}'),
    rename('blocks.{i}.{j}.mlp.fc2.{p}',     'layers.{i}.{j}.ffn.layers.1.{p}'),
    rename('norm_list.{i}.{p}',              'norm_list.{i}.{p}'),
)

# SSSegmentation's backbone has mmsegmentation's names; its heads have others.
SSSEG_HEADS = (
    #      SSSegmentation                    mmsegmentation
    rename('ppm_net.branches.{i}.1.{p}',     'decode_head.psp_modules.{i}.1.conv.{p}'),
    rename('ppm_net.branches.{i}.2.{p}',     'decode_head.psp_modules.{i}.1.bn.{p}'),
    rename('ppm_net.bottleneck.0.{p}',       'decode_head.bottleneck.conv.{p}'),
    rename('ppm_net.bottleneck.1.{p}',       'decode_head.bottleneck.bn.{p}'),
    rename('lateral_convs.{i}.0.{p}',        'decode_head.lateral_convs.{i}.conv.{p}'),
    rename('lateral_convs.{i}.1.{p}',        'decode_head.lateral_convs.{i}.bn.{p}'),
    rename('fpn_convs.{i}.0.{p}',            'decode_head.fpn_convs.{i}.conv.{p}'),
    rename('fpn_convs.{i}.1.{p}',            'decode_head.fpn_convs.{i}.bn.{p}'),
    rename('decoder.0.{p}',                  'decode_head.fpn_bottleneck.conv.{p}'),
    rename('decoder.1.{p}',                  'decode_head.fpn_bottleneck.bn.{p}'),
    rename('decoder.4.{p}',                  'decode_head.conv_seg.{p}'),
    rename('auxiliary_decoder.0.{p}',        'auxiliary_head.convs.0.conv.{p}'),
    rename('auxiliary_decoder.1.{p}',        'auxiliary_head.convs.0.bn.{p}'),
    rename('auxiliary_decoder.4.{p}',        'auxiliary_head.conv_seg.{p}'),
)

# The official segmentation code uses mmsegmentation's heads.
MMSEG_HEADS = (
    rename('neck.{rest}',                    'neck.{rest}'),
    rename('decode_head.{rest}',             'decode_head.{rest}'),
    rename('auxiliary_head.{rest}',          'auxiliary_head.{rest}'),
)
# fmt: on

MMSEG_BACKBONE = tuple(rename(rule.target, rule.target) for rule in OFFICIAL_BACKBONE)

# Besides the backbone, the official models have an ImageNet classifier and a norm
# before it. mmsegmentation's own converter leaves that norm in its files.
CLASSIFIER = ('head.{rest}', 'norm.{p}')
# Only segmentation adds norms after SVT's stages: no classifier has them.
STAGE_NORMS = ('norm_list.{i}.{p}',)


def in_segmentor(rules: tuple[Rule, ...], source: str) -> tuple[Rule, ...]:
    """Return a backbone's rules with the prefixes that its names have in segmentors."""
    return tuple(
        Rule(
            tuple(source + name for name in rule.sources),
            'backbone.' + rule.target,
            rule.shares,
        )
        for rule in rules
    )


@dataclass(frozen=True)
class Layout:
    """How a project names the tensors of a checkpoint.

    Attributes:
        project: ``'official'``, ``'sssegmentation'`` or ``'mmsegmentation'``.
        backbone: rules for the backbone, by which the layout is detected.
        prefix: what precedes the backbone's names; empty for a bare backbone.
        heads: rules for everything else in a segmentor.
        may_drop: templates of names that are dropped.
        may_be_missing: templates of names that may be missing, but only all of them
            together.
    """

    project: str
    backbone: tuple[Rule, ...]
    prefix: str = ''
    heads: tuple[Rule, ...] = ()
    may_drop: tuple[str, ...] = ()
    may_be_missing: tuple[str, ...] = ()

    @property
    def is_segmentor(self) -> bool:
        """Return whether the layout has heads."""
        return bool(self.heads)


LAYOUTS = (
    Layout(
        'official',
        OFFICIAL_BACKBONE,
        may_drop=CLASSIFIER,
        may_be_missing=STAGE_NORMS,
    ),
    Layout(
        'official',
        in_segmentor(OFFICIAL_BACKBONE, 'backbone.'),
        prefix='backbone.',
        heads=MMSEG_HEADS,
        may_drop=tuple('backbone.' + name for name in CLASSIFIER),
    ),
    Layout(
        'sssegmentation',
        in_segmentor(MMSEG_BACKBONE, 'backbone_net.'),
        prefix='backbone_net.',
        heads=SSSEG_HEADS,
    ),
    Layout(
        'mmsegmentation',
        MMSEG_BACKBONE,
        may_drop=CLASSIFIER,
        may_be_missing=STAGE_NORMS,
    ),
    Layout(
        'mmsegmentation',
        in_segmentor(MMSEG_BACKBONE, 'backbone.'),
        prefix='backbone.',
        heads=MMSEG_HEADS,
    ),
)
