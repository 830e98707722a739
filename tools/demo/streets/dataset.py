"""The dataset class that reads the demo's scenes."""

from __future__ import annotations

from pathlib import Path

from mmseg.datasets import BaseSegDataset

from mmseg_twins.registry import DATASETS
from streets.street.labels import CLASSES, PALETTE


@DATASETS.register_module()
class StreetsDataset(BaseSegDataset):
    """Scenes of :mod:`streets.folder`, annotated as ADE20K is.

    Args:
        img_suffix: Of the pictures.
        seg_map_suffix: Of the annotations.
        reduce_zero_label: Whether class 1 of the files is the model's 0, and
            the files' 0 is ignored.
        **kwargs: Of ``mmseg.datasets.BaseSegDataset``.

    Raises:
        FileNotFoundError: The folder of pictures is missing.
    """

    METAINFO = dict(classes=CLASSES, palette=[list(colour) for colour in PALETTE])

    def __init__(
        self,
        *,
        img_suffix: str = '.jpg',
        seg_map_suffix: str = '.png',
        reduce_zero_label: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(
            img_suffix=img_suffix,
            seg_map_suffix=seg_map_suffix,
            reduce_zero_label=reduce_zero_label,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """List the pictures and their annotations."""
        images = Path(self.data_prefix['img_path'])
        if not images.is_dir():
            raise FileNotFoundError(
                f'no scenes in {images}: make them with '
                f'`python tools/dataset_converters/street_scenes.py '
                f'{self.data_root}`, or set data_root to where they are'
            )
        return super().load_data_list()
