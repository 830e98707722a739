"""Gathers facts about this machine, whatever is missing or broken on it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from importlib import metadata
from types import ModuleType

from packaging.requirements import Requirement

from .checks import BASES, BUILT_ON_THEM, Facts

#: What the report names the versions of; all but the extra `deploy` and torchvision
#: are in use wherever the package is.
DISTRIBUTIONS = (
    'torch', 'torchvision', 'mmcv', 'mmcv-lite', 'mmengine', 'mmsegmentation',
    'openmim', 'openxlab', 'setuptools', 'numpy', 'opencv-python',
    'opencv-python-headless', 'opencv-contrib-python', 'ftfy', 'regex', 'safetensors',
    'matplotlib', 'packaging', 'pillow', 'rich', 'onnx', 'onnxruntime', 'onnxscript',
)  # fmt: skip


def collect() -> Facts:
    """Looks at this machine; imports all that the package stands on."""
    versions = {
        name: found for name in DISTRIBUTIONS if (found := _version(name)) is not None
    }
    errors = {
        module: error
        for module in modules_in_use(versions)
        if (error := _import_error(module)) is not None
    }
    forward = {}
    if 'torch' not in errors:
        forward = {name: forward_error(name) for name in _devices()}
    return Facts(
        versions,
        errors,
        _torchvision_needs(),
        forward,
        compat_off=os.environ.get('MMSEG_TWINS_COMPAT') == '0',
    )


def _version(name: str) -> str | None:
    try:
        found = metadata.version(name)
    # Broken metadata raises whatever reading it stumbles over.
    except Exception:
        return None
    return str(found) if found else None


def modules_in_use(versions: Mapping[str, str]) -> list[str]:
    """What has to be importable; torchvision only where it is installed."""
    modules = (*BASES, *BUILT_ON_THEM)
    return [name for name in modules if name != 'torchvision' or name in versions]


def _torchvision_needs() -> str | None:
    try:
        needs = metadata.requires('torchvision') or ()
        return next(n for n in needs if Requirement(n).name == 'torch')
    except Exception:
        return None


def _import_error(module: str) -> str | None:
    """What importing a module raises; compat is switched on with its import."""
    try:
        imported = importlib.import_module(module)
        if module == 'mmseg_twins.compat':
            imported.activate()
    # Some packages end the process where they do not like what they find.
    except (Exception, SystemExit) as error:
        return one_line(error)
    return None


def torch_module() -> ModuleType:
    """torch, imported when it is asked for."""
    return importlib.import_module('torch')


def _devices() -> list[str]:
    """Names of the devices that torch sees."""
    devices = ['cpu']
    try:
        torch = torch_module()
        devices += [f'cuda:{index}' for index in range(torch.cuda.device_count())]
        if torch.backends.mps.is_available():
            devices.append('mps')
    # A driver that does not answer; the devices so far are what can be used.
    except Exception:
        pass
    return devices


def forward_error(device: str) -> str | None:
    """What goes wrong in a forward pass of a tiny Twins, if anything does."""
    try:
        torch = torch_module()
        backbones = importlib.import_module('mmseg_twins.models.backbones')
        model = backbones.SVT(
            arch='small',
            embed_dims=(8, 16, 24, 32),
            num_heads=(1, 2, 3, 4),
            depths=(2, 2, 2, 2),
        )
        with torch.inference_mode():
            features = model.to(device).eval()(torch.ones(1, 3, 64, 96, device=device))
            if all(bool(feature.isfinite().all()) for feature in features):
                return None
    except Exception as error:
        return one_line(error)
    return 'its features are not finite'


def one_line(error: BaseException) -> str:
    """What an error says, at most 200 characters of it."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f'{text[:200]}...'
