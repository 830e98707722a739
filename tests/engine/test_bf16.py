"""bf16 training, which mmengine's own wrapper refuses on a CPU."""

from __future__ import annotations

import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from builders import tiny

OPTIMIZER = dict(type='SGD', lr=0.1)


def wrapper_for(model: nn.Module, **options):
    return build_optim_wrapper(model, dict(optimizer=OPTIMIZER, **options))


def test_forward_is_bf16_and_everything_that_stays_is_fp32():
    model = tiny('SVT').float()
    wrapper = wrapper_for(model, type='mmseg_twins.BF16OptimWrapper')
    seen = set()
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.register_forward_hook(lambda _m, _x, y: seen.add(y.dtype))
    before = [parameter.clone() for parameter in model.parameters()]
    with wrapper.optim_context(model):
        loss = model(torch.rand(1, 3, 64, 64))[-1].float().square().mean()
    wrapper.backward(loss)
    wrapper.step()

    assert seen == {torch.bfloat16}
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter, old - 0.1 * parameter.grad)


def test_gradients_are_those_of_fp32_to_the_precision_of_bf16():
    image, gradients = torch.rand(2, 3, 64, 64), {}
    for type_ in ('OptimWrapper', 'mmseg_twins.BF16OptimWrapper'):
        torch.manual_seed(0)
        model = tiny('SVT', drop_path_rate=0.0).float()
        wrapper = wrapper_for(model, type=type_)
        with wrapper.optim_context(model):
            loss = model(image)[-1].float().square().mean()
        wrapper.backward(loss)
        gradients[type_] = torch.cat([p.grad.flatten() for p in model.parameters()])

    plain, bf16 = gradients.values()
    assert 0 < (bf16 - plain).norm() / plain.norm() < 0.05
