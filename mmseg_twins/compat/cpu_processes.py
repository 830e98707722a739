"""Make mmengine train in several processes without an accelerator.

mmengine 0.10.7 calls ``torch.cuda.set_device`` for launcher ``pytorch``, passes
DistributedDataParallel a device number, which is not allowed for modules on the CPU,
and keeps PyTorch's SyncBatchNorm, which refuses CPU tensors. All three are fixed in
``Runner``, and the first in the strategies of ``FlexibleRunner``; :mod:`.fsdp` fixes
the others in FSDPStrategy. Nothing changes on machines with an accelerator.
"""

from __future__ import annotations

import atexit
import functools
import logging
from datetime import timedelta

import torch.distributed
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import Runner

LOG = logging.getLogger(__package__)


def patch_runners() -> None:
    """Make ``Runner`` and ``FlexibleRunner`` use gloo, and modules on the CPU."""
    patch_runner()
    patch_strategies()
    LOG.debug('cpu_processes: several processes can train without an accelerator')


def runs_on_cpu_processes(runner: Runner) -> bool:
    """Return whether a runner is distributed on a machine without an accelerator."""
    return runner.distributed and get_device() == 'cpu'


def start_gloo(seconds: float | None) -> None:
    """Start the process group; mmengine uses one that exists already."""
    timeout = {} if seconds is None else {'timeout': timedelta(seconds=seconds)}
    torch.distributed.init_process_group('gloo', **timeout)
    # The process may abort if the group's threads are still running when it ends.
    atexit.register(stop_gloo)


def stop_gloo() -> None:
    """End the process group, if it is still running."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def patch_runner() -> None:
    """Wrap the two methods of ``Runner`` that assume an accelerator."""
    setup_env, wrap_model = Runner.setup_env, Runner.wrap_model

    @functools.wraps(setup_env)
    def setup_env_on_cpu(self: Runner, env_cfg: dict) -> None:
        if (
            self._launcher == 'pytorch'
            and runs_on_cpu_processes(self)
            and not is_distributed()
        ):
            start_gloo(env_cfg.get('dist_cfg', {}).get('timeout'))
        setup_env(self, env_cfg)

    @functools.wraps(wrap_model)
    def wrap_model_on_cpu(self: Runner, model_wrapper_cfg, model):
        if runs_on_cpu_processes(self) and not is_model_wrapper(model):
            self.logger.info(
                'Several processes on the CPU: SyncBatchNorm becomes BatchNorm, and '
                'each process normalizes its own part of the batch.'
            )
            model = revert_sync_batchnorm(model)
            # Buffers are broadcast so that all processes validate the same model.
            model_wrapper_cfg = {
                'type': 'MMDistributedDataParallel',
                'broadcast_buffers': True,
                'find_unused_parameters': self.cfg.get('find_unused_parameters', False),
                **(model_wrapper_cfg or {}),
            }
            if model_wrapper_cfg['type'].endswith('DistributedDataParallel'):
                model_wrapper_cfg['device_ids'] = None
        return wrap_model(self, model_wrapper_cfg, model)

    Runner.setup_env, Runner.wrap_model = setup_env_on_cpu, wrap_model_on_cpu


def patch_strategies() -> None:
    """Make the strategies for several processes use gloo."""
    setup_distributed = DDPStrategy._setup_distributed

    @functools.wraps(setup_distributed)
    def setup_distributed_on_cpu(
        self: DDPStrategy, launcher: str, *args, **kwargs
    ) -> None:
        if launcher == 'pytorch' and get_device() == 'cpu' and not is_distributed():
            start_gloo(kwargs.get('timeout'))
        setup_distributed(self, launcher, *args, **kwargs)

    DDPStrategy._setup_distributed = setup_distributed_on_cpu
