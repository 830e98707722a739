"""What the export form is for: a plain dynamic export goes wrong at other sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from mmseg_twins.apis.export.checking import load_onnx
from mmseg_twins.apis.export.tracing import DEPLOY_PACKAGES, quiet


class Plain(nn.Module):
    """A segmentor's own forward pass, and its logits upsampled."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> Tensor:
        logits = self.segmentor.decode_head(self.segmentor.extract_feat(image))
        return F.interpolate(
            logits, image.shape[2:], mode='bilinear', align_corners=False
        )


@pytest.mark.slow
@pytest.mark.skipif(
    Version(torch.__version__) < Version('2.13'),
    reason='says what PyTorch 2.13 does; 2.7 works on it for many minutes',
)
@pytest.mark.parametrize('head', ['mmseg_twins.UPerHead', 'UPerHead'])
def test_a_plain_export_is_wrong_at_other_sizes(
    make_segmentor, tmp_path: Path, head: str
):
    """``pytest -m slow -s`` shows by how much."""
    for name in DEPLOY_PACKAGES:
        pytest.importorskip(name, reason='comes with the extra `deploy`')
    plain = Plain(make_segmentor('SVT', head, stages=2).float()).eval()
    image = torch.randn(1, 3, 256, 256)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        torch.onnx.export(
            plain,
            (image,),
            tmp_path / 'plain.onnx',
            dynamo=True,
            dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},),
            external_data=False,
            verbose=False,
        )
    predict = load_onnx(tmp_path / 'plain.onnx')
    outcomes = {}
    for size in [(256, 256), (256, 320), (224, 224), (512, 512)]:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            logits = plain(image)
        try:
            difference = float((predict(image) - logits).abs().max())
        except Exception as error:  # onnxruntime has classes of its own
            outcomes[size] = f'{type(error).__name__}'
        else:
            outcomes[size] = difference
        print(head, size, outcomes[size], f'largest logit {logits.abs().max():.1f}')

    assert outcomes.pop((256, 256)) < 1e-3
    assert all(isinstance(one, str) or one > 0.1 for one in outcomes.values())
