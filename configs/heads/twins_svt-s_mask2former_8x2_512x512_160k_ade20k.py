"""SVT-S with Mask2Former's head, trained as mmsegmentation trains it.

Needs mmdet 3 (`pip install 'mmdet>=3.0.0,<4'`) and full mmcv, whose compiled ops the
head's pixel decoder uses; mmcv-lite is not enough.
"""

_base_ = 'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py'
# mmseg_twins first: it prepares what the other modules import.
custom_imports = dict(
    _delete_=True, imports=['mmseg_twins', 'mmdet.models'], allow_failed_imports=False
)

depths = [2, 2, 10, 4]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg_twins.SVT',
        arch='small',
        depths=depths,
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='twins://svt-s'),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)

# The inherited key `backbone` (a tenth of the learning rate) would also switch off
# `norm_decay_mult` there, so norms and position encodings are named.
undecayed = dict(lr_mult=0.1, decay_mult=0.0)
custom_keys = {
    'backbone.position_encodings': undecayed,
    'backbone.norm_list': undecayed,
}
custom_keys.update(
    {f'backbone.patch_embeds.{stage}.norm': undecayed for stage in range(4)}
)
custom_keys.update(
    {
        f'backbone.layers.{stage}.{block}.norm': undecayed
        for stage, depth in enumerate(depths)
        for block in range(depth)
    }
)
# Global attention, in odd blocks, has a norm of its own where it sub-samples.
custom_keys.update(
    {
        f'backbone.layers.{stage}.{block}.attn.norm': undecayed
        for stage, depth in enumerate(depths[:3])
        for block in range(1, depth, 2)
    }
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=custom_keys))
