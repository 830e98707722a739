"""Layer-wise learning rate decay: smaller rates for layers closer to the image.

As in BEiT (arXiv 2106.08254) and ConvNeXt (arXiv 2201.03545), for a Twins backbone of
N blocks:

====================================================  ================================
layer                                                 parts
====================================================  ================================
0                                                     the first patch embedding
1 ... N                                               the blocks of all stages
that of its stage's block 0                           each later patch embedding, each
                                                      position encoding
that of its stage's last block                        each norm after a stage (SVT)
N + 1                                                 everything outside the backbone
====================================================  ================================

The learning rate of a layer is multiplied by ``decay_rate ** (N + 1 - layer)``. The
grouping is that of ``Twins.group_matcher`` in timm's ``models/twins.py``, which has no
norms after stages.

mmsegmentation's ``LearningRateDecayOptimizerConstructor`` supports ConvNeXt, BEiT and
MAE only, and replaces ``norm_decay_mult`` and ``custom_keys`` by rules of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ..errors import SettingError
from ..models.backbones.twins import Twins
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with rates that decay through a Twins backbone.

    Args:
        optim_wrapper_cfg: as for mmengine's constructor; ``optimizer.lr`` is the rate
            outside the backbone.
        paramwise_cfg: ``decay_rate``, above 0 and up to 1, and all of mmengine's
            settings, such as ``norm_decay_mult`` and ``custom_keys``, whose multipliers
            apply as well. Parameters with equal settings share a group.

    Raises:
        SettingError: ``decay_rate`` is missing or out of range, there is no
            ``optimizer.lr``, or the model has no Twins backbone.

    Example:
        >>> optim_wrapper = dict(
        ...     type='OptimWrapper',
        ...     constructor='mmseg_twins.LayerDecayOptimWrapperConstructor',
        ...     optimizer=dict(type='AdamW', lr=6e-5, weight_decay=0.01),
        ...     paramwise_cfg=dict(decay_rate=0.9, norm_decay_mult=0.0),
        ... )
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get('decay_rate')
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 < rate <= 1:
            raise SettingError(
                f'optim_wrapper.paramwise_cfg.decay_rate={rate!r}; give a number above '
                '0 and up to 1, such as 0.9 (1 is no decay)'
            )
        if self.base_lr is None:
            raise SettingError(
                'layer decay scales optim_wrapper.optimizer.lr, which is missing'
            )
        self.decay_rate = float(rate)

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: bool | None = None,
    ) -> None:
        """Append the parameter groups of a model to ``params``.

        Args:
            params: the list of groups.
            module: the model; in mmengine's recursive calls, a submodule.
            prefix: the submodule's name.
            is_dcn_module: mmengine's, passed on.

        Raises:
            SettingError: the model has no Twins backbone.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        layers, depth = number_layers(module)
        groups: list[dict] = []  # one for each parameter
        super().add_params(groups, module, prefix, is_dcn_module)
        merged: dict[str, dict] = {}
        seen = set()
        for group in groups:
            (parameter,) = group.pop('params')
            if id(parameter) in seen:  # two modules share it
                continue
            seen.add(id(parameter))
            scale = self.scale(layers.get(id(parameter), depth + 1), depth)
            group['lr'] = group.get('lr', self.base_lr) * scale
            for multiplier in ('lr_mult', 'decay_mult'):  # applied by now
                group.pop(multiplier, None)
            key = repr(sorted(group.items()))
            merged.setdefault(key, {'params': [], **group})['params'].append(parameter)
        params.extend(merged.values())
        self._log(module, layers, depth, num_groups=len(merged))

    def scale(self, layer: int, depth: int) -> float:
        """Return the factor of a layer's rate in a backbone of ``depth`` blocks."""
        return self.decay_rate ** (depth + 1 - layer)

    def _log(
        self, model: nn.Module, layers: dict[int, int], depth: int, num_groups: int
    ) -> None:
        """Log a line for each layer: its rate, its size, and its modules."""
        sizes: dict[int, int] = {}
        contents: dict[int, dict] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                layer = layers.get(id(parameter), depth + 1)
                sizes[layer] = sizes.get(layer, 0) + parameter.numel()
                contents.setdefault(layer, {})[short_name(name, layer <= depth)] = None
        lines = [
            f'Layer decay {self.decay_rate:g} over {depth} blocks, {num_groups} '
            'parameter groups. These are the rates before any schedule, without '
            'custom_keys.lr_mult.',
            'layer   factor        lr  parameters  modules',
        ]
        for layer in sorted(sizes):
            factor = self.scale(layer, depth)
            lines.append(
                f'{layer:5}  {factor:7.5f}  {factor * self.base_lr:8.2e}  '
                f'{sizes[layer]:10,}  {", ".join(contents[layer])}'
            )
        print_log('\n'.join(lines), logger='current')


def number_layers(model: nn.Module) -> tuple[dict[int, int], int]:
    """Return the layer of each backbone parameter, by ``id``, and the number of blocks.

    Parameters are found through their modules, because wrappers such as FSDP change
    their names.

    Raises:
        SettingError: there is no Twins backbone, there are backbones of different
            depths, or a parameter is in no known part.
    """
    backbones = [part for part in model.modules() if isinstance(part, Twins)]
    if not backbones:
        raise SettingError(
            'layer decay needs a backbone mmseg_twins.PCPVT or mmseg_twins.SVT, '
            f'but this {type(model).__name__} has none; leave out '
            'optim_wrapper.constructor'
        )
    depths = {sum(backbone.sizes.depths) for backbone in backbones}
    if len(depths) > 1:
        raise SettingError(
            'layer decay needs backbones of one depth, but those of this model have '
            f'{" and ".join(map(str, sorted(depths)))} blocks'
        )
    layers: dict[int, int] = {}
    for backbone in backbones:
        for layer, part in parts_of(backbone):
            layers.update((id(parameter), layer) for parameter in part.parameters())
        for name, parameter in backbone.named_parameters():
            if id(parameter) not in layers:
                raise SettingError(
                    'layer decay does not know to which layer of '
                    f'{type(backbone).__name__} the parameter {name!r} belongs'
                )
    return layers, depths.pop()


def parts_of(backbone: Twins) -> Iterator[tuple[int, nn.Module]]:
    """Yield each part of a backbone with its layer."""
    first = 1
    for stage, depth in enumerate(backbone.sizes.depths):
        yield first if stage else 0, backbone.patch_embeds[stage]
        yield first, backbone.position_encodings[stage]
        yield from enumerate(backbone.layers[stage], start=first)
        if backbone.norm_list:
            yield first + depth - 1, backbone.norm_list[stage]
        first += depth


def short_name(name: str, in_backbone: bool) -> str:
    """Return the name of a parameter's module for the log, such as ``layers.0.1``."""
    head, *rest = name.split('.')
    if not in_backbone:
        return head
    return '.'.join(rest[: 3 if rest[0] == 'layers' else 2])
