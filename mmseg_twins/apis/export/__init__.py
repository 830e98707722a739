"""Export of segmentors to ONNX and ``torch.export`` that is right at every size.

* :mod:`.grids`: bins, windows and weights as arithmetic on the shapes that a graph
  meets;
* :mod:`.backbone`, :mod:`.heads`, :mod:`.segmentor`: the forward passes with them;
* :mod:`.building`: a config's segmentor with a checkpoint's weights;
* :mod:`.tracing`: to a file; :mod:`.checking`: and from it, against the segmentor;
* :mod:`.cli`: the command ``tools/export_onnx.py``.

ONNX needs the extra ``deploy``.
"""

from __future__ import annotations

from .segmentor import ExportForm, prepare

__all__ = ['ExportForm', 'prepare']
