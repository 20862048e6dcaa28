"""Pictures in folders, one folder for each class, read when they are needed.

In: a folder of folders with picture files. Out: `ImageFolderDataset`.
Invariant: every file counts: one that is not a picture, or is damaged, is an error that names it, and none is left out
in silence but hidden ones.
Next: table.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.data.dataset import Array, ColourDataset
from needle.data.files import FileName, mismatch
from needle.errors import ArgumentError
from needle.extras import load_extra

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_ROOT = "one folder for each class, with its pictures"
_MAKE_FOLDERS = "make a folder for each class inside it"
_PICTURE = "a picture: " + ", ".join(SUFFIXES)
_REMOVE = "convert it, or move it out of the folder"
_DAMAGED = "replace it, or move it out of the folder"
_SIZE = "ImageFolderDataset: size is a number of pixels or (height, width), each at least 1, not {found!r}"
_HIDDEN = ("thumbs.db", "desktop.ini")


class ImageFolderDataset(ColourDataset):
    """Pictures in folders: `dataset[i]` is (float32 (3, height, width) in [0, 1], label); files are read on demand.

    root: a folder with one folder for each class; sorted by name, they are the labels 0, 1, ... (`classes`). With
    `transforms`, each picture goes through them as (height, width, 3). size: pixels (height, width), or one number for
    both; each picture is resized to it. Without it, pictures keep their sizes, which a batch needs to be equal.
    Needs Pillow. Raises `DataError` for a class without pictures and for what is no picture, there or damaged.
    """

    def __init__(
        self,
        root: FileName,
        transforms: Sequence[Callable[[Any], Any]] | None = None,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__(transforms)
        load_extra("PIL.Image", "Pillow")  # a missing package is said here, not in the middle of an epoch
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ArgumentError(_SIZE.format(found=size))
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise mismatch(root, _ROOT, "no such folder", "check the name")
        entries = sorted(path for path in self.root.iterdir() if not _is_hidden(path))
        folders = [path for path in entries if path.is_dir()]
        for path in entries:
            if path.suffix.lower() in SUFFIXES and path.is_file():
                raise mismatch(path, _ROOT, "a picture that is in no class", _MAKE_FOLDERS)
        if not folders:
            raise mismatch(root, _ROOT, "no folder", _MAKE_FOLDERS)
        self.classes = tuple(folder.name for folder in folders)
        pictures = [_pictures_in(folder) for folder in folders]
        self.files = [file for files in pictures for file in files]
        self.y = np.repeat(np.arange(len(folders)), [len(files) for files in pictures])

    def _pictures(self, index: Any) -> Any:
        numbers = np.arange(len(self))[index]
        if np.ndim(numbers) == 0:
            return read_image(self.files[int(numbers)], self.size)
        return [read_image(self.files[int(number)], self.size) for number in numbers]


def read_image(file: Path, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """The picture in `file`, upright, as float32 (3, height, width) in [0, 1]; transparent parts are white.

    Raises `DataError` where the file cannot be read, MissingExtraError without Pillow.
    """
    images: Any = load_extra("PIL.Image", "Pillow")
    upright: Any = load_extra("PIL.ImageOps", "Pillow").exif_transpose  # cameras store how they were held
    try:
        with images.open(file) as stored:
            image = upright(stored)
            if image.mode.startswith("I") or image.mode == "F":  # "RGB" would clip them
                raise ValueError(f"it has mode {image.mode}: more than the 8 bits for each colour that are read here")
            opaque = images.alpha_composite(images.new("RGBA", image.size, "white"), image.convert("RGBA"))
            colours = opaque.convert("RGB")
            if size is not None:
                colours = colours.resize(size[::-1], images.Resampling.BILINEAR)
            pixels: Array = np.asarray(colours)
    except (OSError, ValueError, SyntaxError, images.DecompressionBombError) as error:
        raise mismatch(file, _PICTURE, f"a file that cannot be read as one ({error})", _DAMAGED) from error
    return np.divide(pixels.transpose(2, 0, 1), 255, dtype=np.float32, order="C")


def _pictures_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path))
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise mismatch(file, _PICTURE, "another file", _REMOVE)
    if not files:
        raise mismatch(folder, "pictures of one class", "none", "put its pictures there, or remove the folder")
    return files


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _HIDDEN
