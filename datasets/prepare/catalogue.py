"""Which files the named data sets consist of, where they come from, and what they must contain.

Sizes and checksums stand here only where they are published; everything else is checked against what the server says.
Targets are the layouts of the original systems, below the folder of the data sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...utils.errors import UsageError, nearest
from ..readers import DATASETS, SHAPES_SPLITS, TEXT_DATASETS

GB, MB = 10**9, 10**6
# the bucket's own address: the certificate of images.cocodataset.org is not for that name
COCO = "https://s3.amazonaws.com/images.cocodataset.org"
WASHINGTON = "https://homes.cs.washington.edu/~ranjay/visualgenome/data/dataset"
NARRATIVES = "https://storage.googleapis.com/localized-narratives/annotations"
GRIT = "https://datarelease.blob.core.windows.net/grit/VG_preprocessed_annotations"
LLAVA = "https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K/resolve/main"
PIX2CAP = "https://huggingface.co/datasets/geshang/Pix2Cap-COCO/resolve/main"
REFER = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
TOY_SPLITS = {"train": 64, "val": 16}


@dataclass(frozen=True, slots=True)
class Download:
    """A file to fetch.

    Attributes:
        url: where from.
        gives: target below the root -> what of the archive it is (as `unpack` reads it), "" for the file itself.
        bytes: its exact length; None where it is not published.
        about: roughly how long it is, where only that is known; 0 where nothing is.
        unpacked: roughly how many bytes come out of an archive; 0 takes its length.
        md5, sha256: as published.
    """

    url: str
    gives: Mapping[str, str]
    bytes: int | None = None
    about: int = 0
    unpacked: int = 0
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """Its file name."""
        return self.url.rpartition("/")[2]

    @property
    def size(self) -> int:
        """Its length in bytes as far as it is known, else 0."""
        return self.bytes or self.about

    @property
    def is_archive(self) -> bool:
        """Whether something has to be unpacked."""
        return any(self.gives.values())


@dataclass(frozen=True, slots=True)
class Part:
    """A folder or file of a set that no reader of a named data set counts.

    Attributes:
        paths: where it may lie, below ``<root>/coco`` or ``<root>``.
        count: how many items it must have; None where that is not published.
        items: what they are: ``files`` of a folder, or the length of a JSON ``list``, of its field ``images``, the
            ``entries`` of a JSON object, or ``lines``.
    """

    paths: tuple[str, ...]
    count: int | None = None
    items: str = "files"


@dataclass(frozen=True, slots=True)
class DataSet:
    """Files that belong together.

    Attributes:
        about: what it is.
        licence: whose terms apply.
        needed_by: configurations and commands.
        downloads: what can be fetched.
        parts: what is counted without a reader.
        records: named data sets of `locap.datasets.readers` that read it -> images; None where not published.
        needs: other sets without which it is of no use.
        by_hand: what has to be fetched by hand, and how.
    """

    about: str
    licence: str
    needed_by: str
    downloads: tuple[Download, ...] = ()
    parts: tuple[Part, ...] = ()
    records: Mapping[str, int | None] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    by_hand: str = ""

    @property
    def size(self) -> int:
        """Bytes to fetch, as far as they are known."""
        return sum(download.size for download in self.downloads)


def _annotations(*names: str) -> dict[str, str]:
    return {f"coco/annotations/{name}.json": f"annotations/{name}.json" for name in names}


def _files(url: str, folder: str, *names: str) -> tuple[Download, ...]:
    return tuple(Download(f"{url}/{name}", {f"{folder}/{name}": ""}) for name in names)


_INSTANCES = tuple(f"{kind}_{split}2017" for kind in ("instances", "captions") for split in ("train", "val"))
_RELEASE = tuple(name for name in TEXT_DATASETS if name.startswith("refcoco") and not name.endswith("loca_validation"))
_REFERRING = {  # images with an expression, by version and split
    "refcoco_unc": {"train": 16_994, "validation": 1_500, "testA": 750, "testB": 750},
    "refcocoplus_unc": {"train": 16_992, "validation": 1_500, "testA": 750, "testB": 750},
    "refcocog_umd": {"train": 21_899, "validation": 1_300, "test": 2_600},
}
_EXPRESSIONS = {f"{version}_{split}": n for version, splits in _REFERRING.items() for split, n in splits.items()}
_COCO_TERMS = "annotations CC BY 4.0; images: Flickr's terms, per image"

CATALOGUE: Mapping[str, DataSet] = {
    "toy": DataSet(
        "drawn scenes as files: images, COCO panoptic, Pix2Cap's format, a record file; nothing is fetched",
        "as locap",
        "trying formats and commands; configs/quickstart.yaml draws the same scenes without files",
        parts=tuple(
            part
            for split, count in TOY_SPLITS.items()
            for part in (
                Part((f"toy/images/{split}",), count),
                Part((f"toy/panoptic_{split}",), count),
                Part((f"toy/annotations/pix2cap_{split}.json",), count, "images"),
                Part((f"toy/records_{split}.json",), count, "records"),
            )
        ),
    ),
    "coco": DataSet(
        "COCO 2017: photographs, boxes, masks and captions",
        _COCO_TERMS,
        "all configurations of Pix2Cap and PixelLLM",
        (
            Download(
                f"{COCO}/zips/train2017.zip",
                {"coco/train2017": "train2017"},
                19_336_861_798,
                md5="cced6f7f71b7629ddf16f17bbcfab6b2",
            ),
            Download(
                f"{COCO}/zips/val2017.zip",
                {"coco/val2017": "val2017"},
                815_585_330,
                md5="442b8da7639aecaf257c1dceb8ba8c80",
            ),
            Download(
                f"{COCO}/annotations/annotations_trainval2017.zip",
                _annotations(*_INSTANCES),
                252_907_541,
                unpacked=600 * MB,
                md5="f4bbac642086de4f52a3fdda2de5fa2c",
            ),
        ),
        (
            Part(("train2017",), 118_287),
            Part(("val2017",), 5_000),
            Part(("annotations/instances_train2017.json",), 118_287, "images"),
            Part(("annotations/instances_val2017.json",), 5_000, "images"),
        ),
        {"coco_2017_train_captions": 118_287, "coco_2017_val_captions": 5_000},
    ),
    "coco_panoptic": DataSet(
        "COCO 2017 panoptic segmentations",
        _COCO_TERMS,
        "Pix2Cap",
        (
            Download(
                f"{COCO}/annotations/panoptic_annotations_trainval2017.zip",
                {
                    **_annotations("panoptic_train2017", "panoptic_val2017"),
                    "coco/panoptic_train2017": "annotations/panoptic_train2017.zip!panoptic_train2017",
                    "coco/panoptic_val2017": "annotations/panoptic_val2017.zip!panoptic_val2017",
                },
                860_725_834,
                unpacked=2 * GB,
            ),
        ),
        (Part(("panoptic_train2017",), 118_287), Part(("panoptic_val2017",), 5_000)),
        {"coco_2017_train_panoptic": 118_287, "coco_2017_val_panoptic": 5_000},
        ("coco",),
    ),
    "pix2cap": DataSet(
        "Pix2Cap-COCO: a description for every segment of 20,550 images",
        "Apache-2.0",
        "configs/pix2cap_panoptic_segmentation_captioning.yaml",
        _files(PIX2CAP, "coco/annotations", "pix2cap_coco_train.json", "pix2cap_coco_val.json"),
        records={"pix2cap_coco_train_with_sem_seg": 18_212, "pix2cap_coco_val_with_sem_seg": 2_338},
        needs=("coco", "coco_panoptic"),
    ),
    "vg": DataSet(
        "Visual Genome: 108,077 images with region descriptions, and GRiT's split of them",
        "CC BY 4.0",
        "configs/pixelllm: densecap; evaluation on Visual Genome",
        (
            Download(
                "https://cs.stanford.edu/people/rak248/VG_100K_2/images.zip",
                {"vg/VG_100K": "VG_100K"},
                about=9_200 * MB,
            ),
            Download(
                "https://cs.stanford.edu/people/rak248/VG_100K_2/images2.zip",
                {"vg/VG_100K_2": "VG_100K_2"},
                about=5_470 * MB,
            ),
            *(
                Download(f"{WASHINGTON}/{name}.json.zip", {f"vg/{name}.json": f"*/{name}.json"})
                for name in ("image_data", "region_descriptions")
            ),
            *_files("https://raw.githubusercontent.com/jcjohnson/densecap/master/info", "vg", "densecap_splits.json"),
            *_files(GRIT, "vg/annotations", "train.json", "test.json"),
        ),
        records={
            "vg_densecap_train": 77_396,
            "vg_densecap_test": 5_000,
            "vg_loca_test": 5_000,
            "visual_genome_train": 77_398,
            "visual_genome_val": 5_000,
            "visual_genome_test": 5_000,
        },
    ),
    "localized_narratives": DataSet(
        "Localized Narratives of COCO: spoken descriptions with the mouse's trace",
        "CC BY 4.0",
        "configs/pixelllm: trace and mixtures with it",
        tuple(
            file
            for name in (
                *(f"coco_train_localized_narratives-{i:05d}-of-00004" for i in range(4)),
                "coco_val_localized_narratives",
            )
            for file in _files(NARRATIVES, "localized_narratives", f"{name}.jsonl")
        ),
        records={"ln_coco_train": 118_287, "ln_coco_val": 5_000, "ln_coco_trace_val": 5_000},
        needs=("coco",),
    ),
    "refcoco": DataSet(
        "RefCOCO, RefCOCO+ and RefCOCOg with masks, one file per split",
        "not stated by its source; COCO's terms for the images",
        "configs/pixelllm: ref, refseg and mixtures with them",
        (
            Download(
                "https://zenodo.org/records/10795249/files/refcoco_release.zip",
                {
                    f"refcoco_release/{name}.json": f"*/{name}.json"
                    for name in (
                        *(name.replace("_validation", "_val") for name in _RELEASE),
                        "merge_coco_img_safe_train",
                    )
                },
            ),
        ),
        records=_EXPRESSIONS | {"refcocog_umd_loca_validation": 1_300, "merge_coco_img_safe_train": 24_407},
        needs=("coco",),
    ),
    "refer": DataSet(
        "RefCOCO, RefCOCO+ and RefCOCOg in the layout of the REFER toolkit",
        "not stated by its source; COCO's terms for the images",
        "evaluation with the files of REFER, as in PixelLM",
        tuple(
            Download(f"{REFER}/{name}.zip", {f"refer_seg/{name}": name}) for name in ("refcoco", "refcoco+", "refcocog")
        ),
        records={f"refer_{name}": count for name, count in _EXPRESSIONS.items()},
        needs=("coco",),
    ),
    "uninext": DataSet(
        "referring expressions of Flickr30k, COCO and Visual Genome, as UNINEXT collected them",
        "not stated by its source; those of the three image collections",
        "configs/pixelllm: ref and mixtures with it",
        records={
            "uninext_flickr_train": 29_778,
            "uninext_mixed_coco_train": 28_158,
            "uninext_mixed_vg_train": 106_635,
        },
        needs=("coco", "vg"),
        by_hand="fetch the REC&RES files that https://github.com/MasterBin-IIAU/UNINEXT/blob/master/assets/DATA.md "
        "links, and put them at ROOT/mixed/instances.json and ROOT/flickr30k/instances.json; Flickr30k's images are "
        "given on request (https://shannon.cs.illinois.edu/DenotationGraph/), for ROOT/flickr30k/flickr30k-images/",
    ),
    "karpathy": DataSet(
        "Karpathy's split of the COCO captions",
        "not stated by its source; annotations CC BY 4.0 as COCO",
        "configs/pixelllm: trace and mixtures with it; captioning results as papers report them",
        (
            Download(
                "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip",
                {"coco/annotations/dataset_coco.json": "*/dataset_coco.json"},
            ),
        ),
        records={"coco_captions_train": 113_287, "coco_captions_val": 5_000, "coco_captions_test": 5_000},
        needs=("coco",),
    ),
    "llava": DataSet(
        "LLaVA's visual instructions on COCO's training images",
        "CC BY 4.0, and OpenAI's terms of use",
        "configs/pixelllm: mixtures with llava",
        _files(LLAVA, "llava", "llava_instruct_150k.json"),
        (Part(("llava/llava_instruct_150k.json", "llava/llava_instruct.json"), 157_712, "list"),),
        {"llava_instruct": None},
        ("coco",),
    ),
    "llava_mix": DataSet(
        "the instructions of LLaVA 1.5",
        "CC BY 4.0, and OpenAI's terms of use; those of each image collection",
        "training on LLaVA 1.5's mixture",
        _files(LLAVA, "llava", "llava_v1_5_mix665k.json"),
        (Part(("llava/llava_v1_5_mix665k.json",), 665_298, "list"),),
        {"llava_v1_5_mix665k": None},
        ("coco", "vg"),
        by_hand="its images beside those of COCO and Visual Genome (GQA, OCR-VQA, TextVQA) go to ROOT/llava/, as "
        "https://github.com/haotian-liu/LLaVA describes",
    ),
    "muse": DataSet(
        "MUSE: questions about several targets, with masks",
        "not published",
        "evaluation --protocol muse",
        parts=tuple(
            Part((f"muse/muse_{split}.json", f"muse_{split}.json"), None, "list") for split in ("train", "val")
        ),
        needs=("coco",),
        by_hand="follow the link to MUSE in https://github.com/MaverickRen/PixelLM (Google Drive; it changes), and put "
        "muse_train.json and muse_val.json into ROOT/muse/",
    ),
    "vip_bench": DataSet(
        "ViP-Bench: 303 questions about marked regions, in two styles",
        "Apache-2.0",
        "evaluation --protocol vip_bench",
        parts=(
            Part(("vip_bench/vip-bench-meta-data.json",), 303, "entries"),
            Part(("vip_bench/bbox/questions.jsonl",), 303, "lines"),
            Part(("vip_bench/human/questions.jsonl",), 303, "lines"),
        ),
        by_hand="hf download mucai/ViP-Bench --repo-type dataset --local-dir ROOT/vip_bench",
    ),
}


def find_sets(names: Sequence[str]) -> dict[str, tuple[str, ...] | None]:
    """Return set -> the named data sets of it that are meant, None for all of it.

    Args:
        names: of sets, of named data sets, and these with a task before them, as in ``DATASETS.TRAIN``.

    Raises:
        UsageError: an unknown name.
    """
    found: dict[str, tuple[str, ...] | None] = {}
    for given in names:
        name = given.rpartition(":")[2]
        if name in SHAPES_SPLITS:
            continue
        if name in CATALOGUE:
            found[name] = None
            continue
        owner = set_of(name)
        if owner not in found or found[owner] is not None:
            found[owner] = tuple(dict.fromkeys((*(found.get(owner) or ()), name)))
    return found


def set_of(name: str) -> str:
    """Return the set that a named data set belongs to.

    Raises:
        UsageError: an unknown name.
    """
    owner = next((key for key, described in CATALOGUE.items() if name in described.records), None)
    if owner is None:
        close = nearest(name, (*CATALOGUE, *DATASETS, *TEXT_DATASETS, *SHAPES_SPLITS))
        fix = f"did you mean {close}?" if close else "python entry.py data list"
        raise UsageError("Unknown data set.", value=name, allowed=", ".join(CATALOGUE), fix=fix)
    return owner
