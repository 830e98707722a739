"""mmsegmentation's segmentors, with prediction in bounded memory."""

from __future__ import annotations

from .encoder_decoder import EncoderDecoder
from .tta import SegTTAModel

__all__ = ['EncoderDecoder', 'SegTTAModel']
