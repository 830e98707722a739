"""Make mmengine's FSDPStrategy resume, and train without an accelerator.

mmengine 0.10.7 passes the arguments of ``optim_state_dict_to_load`` in the order of
PyTorch 2.0, so that no training resumes. On a CPU it passes a GPU as the device of the
shards; and offloading the state dict to the CPU, where it is already, reads memory that
PyTorch has freed (torch/distributed/fsdp/_state_dict_utils.py).
"""

from __future__ import annotations

import dataclasses
import functools
import logging

from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

LOG = logging.getLogger(__package__)


def patch_strategy() -> None:
    """Replace the two methods if mmengine has an FSDPStrategy."""
    try:
        from mmengine._strategy import FSDPStrategy
    except ImportError:  # mmengine omits it if its import fails
        return
    wrap_model = FSDPStrategy._wrap_model

    @functools.wraps(wrap_model)
    def wrap_model_on_cpu(self: DDPStrategy, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu' and not is_model_wrapper(model):
            model = revert_sync_batchnorm(model)
            self.model_wrapper = {'device_id': 'cpu', **(self.model_wrapper or {})}
            self.state_dict_config = without_cpu_offload(self.state_dict_config)
            self.optim_state_dict_config = without_cpu_offload(
                self.optim_state_dict_config
            )
        return wrap_model(self, model)

    def load_optim_state_dict(self: DDPStrategy, state_dict: dict) -> None:
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(
                model=self.model, optim=optimizer, optim_state_dict=state_dict
            )
        )

    FSDPStrategy._wrap_model = wrap_model_on_cpu
    FSDPStrategy.load_optim_state_dict = load_optim_state_dict
    LOG.debug('fsdp: FSDPStrategy resumes, and trains without an accelerator')


def without_cpu_offload(config):
    """Return one of PyTorch's state dict configs, without offloading to the CPU."""
    return dataclasses.replace(config, offload_to_cpu=False)
