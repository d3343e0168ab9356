"""Captions of whole COCO images: COCO's own JSON, and Karpathy's splits."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...utils.errors import DataError
from ...utils.untrusted import each_object, get, read_image_size, read_json, shown
from ..records import Record
from .packed import ImageFinder, PackedReader, coco_names
from .visual_genome import size_of

logger = logging.getLogger(__name__)
Folders = str | Path | Sequence[str | Path]
KARPATHY_SPLITS = ("train", "restval", "val", "test")


class _Captions(PackedReader):
    """Records with ``captions``; blank ones are left out and counted, and so are images without any.

    Attributes:
        blank: number of blank captions.
        without_caption: ids of the images left out.
    """

    def __init__(self, annotations: str | Path, images: Folders) -> None:
        self.annotations = Path(annotations)
        self.blank, self.without_caption = 0, []
        self._images = ImageFinder(images, shown(self.annotations))
        super().__init__(self._entries(), shown(self.annotations))
        self._images.require_found()
        if self.blank or self.without_caption:
            message = "%s: %d blank captions and %d images without a caption are left out"
            logger.warning(message, shown(self.annotations), self.blank, len(self.without_caption))

    @abstractmethod
    def _entries(self) -> Iterator[dict[str, Any]]:
        """Yield the entries of the file's images, see `_entry`."""

    def _entry(
        self, image_id: int | str, captions: Sequence[str], names: Sequence[str], size: Any = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the entry of an image, unless it has no caption."""
        kept = [caption for caption in captions if caption.strip()]
        self.blank += len(captions) - len(kept)
        if kept:
            yield {"id": image_id, "captions": kept, "image": self._images.find(names), "size": size}
        else:
            self.without_caption.append(image_id)

    def _record(self, entry: dict[str, Any]) -> Record:
        image = self._images.path(entry["image"])
        return Record(entry["id"], *(entry["size"] or read_image_size(image)), image, captions=tuple(entry["captions"]))


class CocoCaptionsReader(_Captions):
    """Records of ``captions_{train,val}{2014,2017}.json``.

    Args:
        annotations: the JSON file.
        images: folder or folders of the images, which are looked for in it and in ``train2017`` and the like below.
    """

    def _entries(self) -> Iterator[dict[str, Any]]:
        file = shown(self.annotations)
        document = read_json(self.annotations)
        images = {
            get(body, "id", (int, str), where): (body, where) for body, where in each_object(document, file, "images")
        }
        captions: dict[int | str, list[str]] = {image_id: [] for image_id in images}
        for body, where in each_object(document, file, "annotations"):
            image_id = get(body, "image_id", (int, str), where)
            if image_id not in captions:
                raise DataError("A caption belongs to no image of the file.", where=where, value=image_id)
            captions[image_id].append(get(body, "caption", (str,), where))
        del document
        for image_id, (body, where) in images.items():
            names = coco_names(get(body, "file_name", (str,), where))
            yield from self._entry(image_id, captions[image_id], names, size_of(body, where))


class KarpathyReader(_Captions):
    """Records of ``dataset_coco.json``; sizes are those of the image files.

    Args:
        annotations: the JSON file.
        images: folder or folders of the images: those of 2014 in ``train2014`` and ``val2014`` or those of 2017.
        splits: which of train, restval, val and test; training takes the first two.
    """

    def __init__(
        self, annotations: str | Path, images: Folders, *, splits: Sequence[str] = KARPATHY_SPLITS[:2]
    ) -> None:
        self.splits = frozenset(splits)
        super().__init__(annotations, images)

    def _entries(self) -> Iterator[dict[str, Any]]:
        for body, where in each_object(read_json(self.annotations), shown(self.annotations), "images"):
            split = get(body, "split", (str,), where)
            if split not in KARPATHY_SPLITS:
                raise DataError("Unknown split.", where=where, value=split, allowed=", ".join(KARPATHY_SPLITS))
            if split in self.splits:
                captions = [get(item, "raw", (str,), place) for item, place in each_object(body, where, "sentences")]
                names = coco_names(get(body, "filename", (str,), where), body.get("filepath") or "")
                yield from self._entry(get(body, "cocoid", (int,), where), captions, names)
