"""A whole segmentor in a form that is traced once and right at every size."""

from __future__ import annotations

import torch
from mmseg.models.decode_heads import FPNHead, UPerHead
from mmseg.models.necks import FPN
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ...models.backbones.twins import Twins
from .backbone import run_backbone
from .heads import resize, run_fpn_head, run_neck, run_uper_head

OUTPUTS = ('logits', 'classes')


class ExportForm(nn.Module):
    """Image in, logits or classes of its pixels out.

    Computes what the segmentor computes in evaluation, with the segmentor's own
    parameters, and takes every size from the shape of the image: see :mod:`.grids`.
    :func:`prepare` makes one.

    Args:
        segmentor: in evaluation mode.
        output: one of ``OUTPUTS``.
        embed_preprocessing: whether images come as RGB bytes, channels last, and are
            normalized as the segmentor's data preprocessor does.
    """

    def __init__(
        self, segmentor: EncoderDecoder, *, output: str, embed_preprocessing: bool
    ) -> None:
        super().__init__()
        self.backbone = segmentor.backbone
        self.neck = segmentor.neck if segmentor.with_neck else None
        self.decode_head = segmentor.decode_head
        self.output = output
        self.embed_preprocessing = embed_preprocessing
        if embed_preprocessing:
            preprocessor = segmentor.data_preprocessor
            self.register_buffer('mean', preprocessor.mean.clone(), persistent=False)
            self.register_buffer('std', preprocessor.std.clone(), persistent=False)
            # Images are read as BGR; a model without conversion is trained on that.
            self.reverse_channels = not preprocessor.channel_conversion

    def forward(self, image: Tensor) -> Tensor:
        """Segments images.

        Args:
            image: (B, 3, H, W), normalized; with ``embed_preprocessing`` (B, H, W, 3),
                uint8, RGB.

        Returns:
            Logits (B, classes, H, W), or classes (B, H, W), int64.
        """
        if self.embed_preprocessing:
            image = image.permute(0, 3, 1, 2).to(self.mean.dtype)
            if self.reverse_channels:
                image = image.flip(1)
            image = (image - self.mean) / self.std
        maps = run_backbone(self.backbone, image)
        if self.neck is not None:
            maps = run_neck(self.neck, maps)
        head = self.decode_head
        run_head = run_uper_head if isinstance(head, UPerHead) else run_fpn_head
        logits = resize(run_head(head, maps), image.shape[2:], head.align_corners)
        return logits if self.output == 'logits' else classify(logits, head.threshold)


def classify(logits: Tensor, threshold: float | None) -> Tensor:
    """Classes (B, H, W), int64, as mmsegmentation decides them.

    Args:
        logits: (B, classes, H, W); of a single channel, the foreground's.
        threshold: the foreground's least probability.
    """
    if logits.shape[1] > 1:
        return logits.argmax(1)
    return (logits[:, 0].sigmoid() > threshold).long()


def prepare(
    segmentor: EncoderDecoder,
    *,
    output: str = 'logits',
    embed_preprocessing: bool = False,
) -> ExportForm:
    """Makes the export form of a segmentor.

    Args:
        segmentor: mmsegmentation's ``EncoderDecoder`` of a Twins backbone of this
            package and a ``UPerHead`` or ``FPNHead``, mmsegmentation's or this
            package's, with or without a neck ``FPN``; in evaluation mode. It stays as
            it is and shares its parameters. Auxiliary heads are left out.
        output: ``'logits'`` (of mmsegmentation's ``predict``: bilinearly upsampled to
            the image) or ``'classes'``.
        embed_preprocessing: whether the form takes uint8 RGB images, (B, H, W, 3).

    Returns:
        The form, in evaluation mode.

    Raises:
        ValueError: the segmentor or an argument is something else; says what.
    """
    if output not in OUTPUTS:
        raise ValueError(f'output={output!r}; give one of {", ".join(OUTPUTS)}')
    if segmentor.training:
        raise ValueError('the segmentor is in training mode; call its eval() first')
    check_backbone(segmentor.backbone)
    neck = segmentor.neck if segmentor.with_neck else None
    if neck is not None and not (
        isinstance(neck, FPN) and neck.num_outs == len(neck.lateral_convs)
    ):
        raise ValueError(
            f"the neck is {type(neck).__name__}; export supports none and 'FPN' with "
            'as many outputs as inputs'
        )
    head = segmentor.decode_head
    if not isinstance(head, (UPerHead, FPNHead)):
        raise ValueError(
            f'the decode head is {type(head).__name__}; export supports UPerHead and '
            "FPNHead, mmsegmentation's and those of mmseg_twins"
        )
    if embed_preprocessing and not hasattr(segmentor.data_preprocessor, 'mean'):
        raise ValueError(
            "--embed-preprocessing: the config's model.data_preprocessor has no mean "
            'and std to embed'
        )
    form = ExportForm(segmentor, output=output, embed_preprocessing=embed_preprocessing)
    return form.eval()


def check_backbone(backbone: nn.Module) -> None:
    """Checks that a backbone is one whose forward pass is known here.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(backbone, Twins):
        raise ValueError(
            f'the backbone is {type(backbone).__name__} of '
            f'{type(backbone).__module__}; export supports mmseg_twins.PCPVT and '
            'mmseg_twins.SVT'
        )
    for stage, embedding in enumerate(backbone.patch_embeds):
        kernel, stride = embedding.projection.kernel_size, embedding.projection.stride
        if kernel != stride:
            raise ValueError(
                f'stage {stage} of the backbone has patches of {kernel[0]} at strides '
                f'of {stride[0]}; export supports patches that do not overlap'
            )


def example_image(
    form: ExportForm, batch: int, height: int, width: int, *, seed: int = 0
) -> Tensor:
    """Random images of the kind that a form takes."""
    generator = torch.Generator().manual_seed(seed)
    if form.embed_preprocessing:
        size = (batch, height, width, 3)
        return torch.randint(256, size, generator=generator, dtype=torch.uint8)
    image = torch.randn(batch, 3, height, width, generator=generator)
    return image.to(form.decode_head.conv_seg.weight.dtype)
