"""Local files that are replaced in one step, and removed when it is time.

mmengine 0.10.7 writes a checkpoint into its place, and removes the one that it
replaces before: a run that is killed meanwhile leaves half a file, or none.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from ..checkpoints.writing import replacing

NAME = 'mmseg_twins.whole_files'


class WholeFiles(LocalBackend):
    """mmengine's backend of local files, whose files are there completely or not.

    What is put goes to a temporary file beside the target, to disk, and into place by
    renaming. What is removed stays until :meth:`remove_outdated` is called.

    Attributes:
        outdated: paths of what is to be removed.
    """

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes in one step; folders are made where they are missing.

        Args:
            obj: what the file is to hold.
            filepath: the file, which is replaced where it is there.

        Raises:
            OSError: it could not be written; what was there before still is.
        """
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, force=True) as temporary:
            temporary.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text in one step, as :meth:`put` writes bytes."""
        self.put(obj.encode(encoding), filepath)

    def remove(self, filepath: str | Path) -> None:
        """Note a file as outdated."""
        self.outdated.append(str(filepath))

    def rmtree(self, dir_path: str | Path) -> None:
        """Note a folder as outdated."""
        self.remove(dir_path)

    def remove_outdated(self) -> None:
        """Remove what was noted; what is gone already is passed over."""
        while self.outdated:
            path = Path(self.outdated[0])
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            del self.outdated[0]


# Importing the module a second time, as test runners do, registers it again.
register_backend(NAME, WholeFiles, force=True)
