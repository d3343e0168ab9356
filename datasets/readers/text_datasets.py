"""Where the files of named data sets with boxes and texts lie, in the layouts of the originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

COCO = ("coco", ".")
VISUAL_GENOME = ("vg/images", "vg", "visual_genome", "VG_100K", *COCO)
FLICKR = ("flickr30k/flickr30k-images", "flickr30k-images", "flickr30k/images", "flickr30k")
LLAVA = ("llava", "playground/data", *COCO)
LLAVA_FILES = {
    "llava_v1_5_mix665k": ("llava_v1_5_mix665k.json",),
    "llava_instruct": ("llava_instruct_150k.json", "llava_instruct.json"),
}
# names of published configurations -> names in files
REFER_SPLITS = {
    "refcoco_unc": {"train": "train", "validation": "val", "testA": "testA", "testB": "testB"},
    "refcocoplus_unc": {"train": "train", "validation": "val", "testA": "testA", "testB": "testB"},
    "refcocog_umd": {"train": "train", "validation": "val", "test": "test"},
}
REFER_FOLDERS = {"refcoco_unc": "refcoco", "refcocoplus_unc": "refcoco+", "refcocog_umd": "refcocog"}
NARRATIVES = {
    "train": tuple(f"coco_train_localized_narratives-{i:05d}-of-00004.jsonl" for i in range(4)),
    "val": ("coco_val_localized_narratives.jsonl",),
}


@dataclass(frozen=True, slots=True)
class TextSource:
    """Where a named data set lies.

    Attributes:
        reader: key of `READERS`.
        files: layouts, each the annotation files relative to ``<root>/coco`` or ``<root>``.
        images: folders that are searched for images, relative to the root.
        beside: further arguments of the reader that are files in the folder of the annotations.
        options: further arguments of the reader.
    """

    reader: str
    files: tuple[tuple[str, ...], ...]
    images: tuple[str, ...] = COCO
    beside: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def _in_folders(files: tuple[str, ...], *folders: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{folder}/{file}".removeprefix("./") for file in files) for folder in folders)


def _visual_genome() -> Iterator[tuple[str, TextSource]]:
    for split in ("train", "test"):
        files = _in_folders((f"{split}.json",), "vg/annotations", "vg", "visual_genome")
        yield f"vg_densecap_{split}", TextSource("grit", files, VISUAL_GENOME)
    yield "vg_loca_test", TextSource("grit", files, VISUAL_GENOME)
    beside = {"image_data": "image_data.json", "splits": "densecap_splits.json"}
    raw = _in_folders(("region_descriptions.json",), "visual_genome", "vg", "VisualGenome")
    for split in ("train", "val", "test"):
        yield f"visual_genome_{split}", TextSource("visual_genome", raw, VISUAL_GENOME, beside, {"split": split})


def _narratives() -> Iterator[tuple[str, TextSource]]:
    for split, files in NARRATIVES.items():
        source = TextSource("localized_narratives", _in_folders(files, "localized_narratives", "annotations", "."))
        yield f"ln_coco_{split}", source
    yield "ln_coco_trace_val", source


def _referring() -> Iterator[tuple[str, TextSource]]:
    folders = ("refcoco_release", "refcoco_mdetr", "annotations")
    for name, splits in REFER_SPLITS.items():
        version = name.rpartition("_")[2]
        for split, short in splits.items():
            files = tuple(f"{folder}/{name}_{ending}.json" for folder in folders for ending in (short, split))
            yield f"{name}_{split}", TextSource("mdetr", tuple((file,) for file in dict.fromkeys(files)))
            refs = _in_folders((f"refs({version}).p",), f"refer_seg/{REFER_FOLDERS[name]}", REFER_FOLDERS[name])
            beside = {"instances": "instances.json"}
            yield (
                f"refer_{name}_{split}",
                TextSource("refer", refs, ("refer_seg/images/mscoco/images", *COCO), beside, {"split": short}),
            )
    files = _in_folders(("refcocog_umd_val.json",), *folders)
    yield "refcocog_umd_loca_validation", TextSource("mdetr", files)
    yield "merge_coco_img_safe_train", TextSource("mdetr", _in_folders(("merge_coco_img_safe_train.json",), *folders))
    mixed, flickr = (("mixed/instances.json",),), (("flickr30k/instances.json",),)
    yield "uninext_flickr_train", TextSource("uninext", flickr, FLICKR)
    for source, images in (("coco", COCO), ("vg", VISUAL_GENOME)):
        yield f"uninext_mixed_{source}_train", TextSource("uninext", mixed, images, options={"source": source})


def _captions() -> Iterator[tuple[str, TextSource]]:
    karpathy = _in_folders(("dataset_coco.json",), "annotations", ".")
    for name, splits in (("train", ("train", "restval")), ("val", ("val",)), ("test", ("test",))):
        yield f"coco_captions_{name}", TextSource("karpathy", karpathy, options={"splits": splits})
    for split in ("train", "val"):
        yield f"coco_2017_{split}_captions", TextSource("coco_captions", ((f"annotations/captions_{split}2017.json",),))
    for name, files in LLAVA_FILES.items():
        layouts = [layout for file in files for layout in _in_folders((file,), "llava", "llava_dataset", ".")]
        yield name, TextSource("llava", tuple(layouts), LLAVA)


TEXT_DATASETS: Mapping[str, TextSource] = dict([*_visual_genome(), *_narratives(), *_referring(), *_captions()])
