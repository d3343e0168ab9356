"""Records and detectron2: against the library where it is installed, else against what it was recorded to say.

``LOCAP_RECORD=1 pytest tests/datasets/test_detectron2.py`` writes the recording anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from locap.datasets.categories import COCO_PANOPTIC
from locap.datasets.detectron2_catalog import metadata_of, to_catalog
from locap.datasets.detectron2_classes import Classes, library
from locap.datasets.detectron2_structures import (
    Texts,
    from_instances,
    from_panoptic,
    mask_tensor,
    region_tensors,
    to_instances,
    to_panoptic,
)
from locap.datasets.readers.coco_panoptic import CocoPanopticReader
from locap.datasets.readers.detectron2 import CatalogReader, entry_of, record_of_entry
from locap.datasets.records import Category, Record, Region, box_of_mask, encode_mask
from locap.datasets.transforms.geometry import shortest_side_size
from locap.evaluation.panoptic import PanopticQuality
from locap.utils.errors import DataError, MissingDependencyError, UsageError
from locap.utils.id_maps import measure_segments
from locap.utils.untrusted import read_id_map

from . import detectron2_cases as cases

RECORDED = Path(__file__).parent / "data" / "detectron2.json"
SEPARATED = Classes(cases.CATEGORIES, {0: 3, 1: 7}, {1: 90})  # as Panoptic FPN numbers them


@pytest.fixture(scope="module")
def recorded() -> dict:
    return json.loads(RECORDED.read_text())


@pytest.fixture
def real():
    """detectron2, or the reason why what it says itself was not looked at."""
    reason = "detectron2 is not installed: only recordings of what it does were compared, not the library itself"
    pytest.importorskip("detectron2.data", reason=reason)
    return pytest.importorskip("detectron2.structures", reason=reason)


@pytest.fixture
def world(tmp_path) -> Path:
    cases.write_dataset(tmp_path)
    return tmp_path


@pytest.fixture
def reader(world) -> CocoPanopticReader:
    folders = (world / "val2017", world / "panoptic_val2017")
    return CocoPanopticReader(world / "annotations" / "panoptic.json", *folders, categories=cases.CATEGORIES)


def at(world: Path, item: dict) -> dict:
    return json.loads(json.dumps(item).replace("<root>", str(world)))


def plain(instances) -> dict:
    """Return the fields of Instances as lists."""
    fields = {name: getattr(value, "tensor", value) for name, value in instances.get_fields().items()}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else list(value) for name, value in fields.items()}


def stand_in(**fields):
    """Return what has the shape of Instances, without the library."""
    lengths = [len(getattr(value, "tensor", value)) for value in fields.values()]
    made = type("Instances", (), {"__len__": lambda self: lengths[0], "get_fields": lambda self: fields})()
    made.image_size = cases.SIZE
    return made


def test_the_recording_is_what_the_libraries_say(real, world):
    pytest.importorskip(
        "panopticapi", reason="panopticapi is not installed: recorded figures were not compared with it"
    )
    observed = cases.observe(world)
    if os.environ.get("LOCAP_RECORD"):
        RECORDED.write_text(json.dumps(observed, separators=(",", ":")) + "\n")
    assert observed == json.loads(RECORDED.read_text())


def test_polygons_and_bitmaps_are_the_same_pixels(recorded):
    polygons = SimpleNamespace(polygons=[[np.array(p) for p in parts] for parts in cases.POLYGONS])
    masks = mask_tensor(polygons, *cases.SIZE)
    assert masks.int().tolist() == recorded["masks"]["rows"]
    assert [list(box_of_mask(mask.numpy())) for mask in masks] == recorded["masks"]["boxes"]


def test_panoptic_fpn_output_becomes_a_record(recorded):
    seen = torch.tensor(recorded["panoptic"]["map"], dtype=torch.int32)
    record = from_panoptic(seen, recorded["panoptic"]["segments"], SEPARATED, image_id=5)
    assert [(r.id, r.category_id, r.score) for r in record.regions][:2] == [(1, 7, pytest.approx(0.9)), (2, 3, 0.75)]
    assert {r.category_id for r in record.regions if r.score is None} == {90}
    again, segments = to_panoptic(record, SEPARATED)
    assert torch.equal(again, seen)
    for mine, theirs in zip(segments, recorded["panoptic"]["segments"], strict=True):
        assert {key: mine[key] for key in ("id", "category_id", "isthing")}.items() <= theirs.items()
        assert mine["area"] == theirs.get("area", mine["area"])


def test_ids_have_panopticapis_colours(world, recorded):
    ids = read_id_map(world / "panoptic_val2017" / "5.png")
    assert set(np.unique(ids)) == {0, *(number for number, *_ in cases.SEGMENTS)}
    drawn = [red + 256 * green + 65536 * blue for red, green, blue in recorded["colours"]]
    assert drawn == [number for number, *_ in cases.SEGMENTS]


def test_quality_is_panopticapis(world, reader, recorded):
    ids = np.roll(cases.id_map(), 1, axis=1)
    regions = [Region(number, category) for number, category, _ in cases.SEGMENTS]
    evaluator = PanopticQuality(cases.CATEGORIES)
    evaluator.update(reader[0], Record(5, *cases.SIZE, regions=regions, id_map=ids))
    figures = evaluator.compute().figures
    names = {"All": "", "Things": "_things", "Stuff": "_stuff"}
    for part, ending in names.items():
        for name in ("pq", "sq", "rq"):
            assert figures[f"{name}{ending}"] == pytest.approx(recorded["quality"][f"{part}_{name}"], abs=1e-12)


def test_images_are_resized_to_the_same_sizes(recorded):
    assert [list(shortest_side_size(*size, 800, 1333)) for size in cases.PIXELS] == recorded["sizes"]


def test_panoptic_entries_are_detectron2s(world, reader, recorded):
    (theirs,) = at(world, recorded["catalog"]["panoptic"])
    ours = to_catalog(reader[0], reader.categories)
    assert {key: ours[key] for key in theirs} == theirs
    assert (ours["height"], ours["width"]) == cases.SIZE


def test_panoptic_entries_become_the_readers_records(world, reader, recorded):
    (item,) = at(world, recorded["catalog"]["panoptic"])
    record = record_of_entry(entry_of(item, "here"), Classes.of(reader.categories))
    assert record == reader[0]


def test_instance_entries_become_records(world, recorded):
    (item,) = at(world, recorded["catalog"]["instances"])
    metadata = SimpleNamespace(thing_classes=["cup", "dog"], thing_dataset_id_to_contiguous_id={3: 0, 7: 1})
    classes = Classes.of_metadata(metadata)
    record = record_of_entry(entry_of(item, "here"), classes)
    assert [r.category_id for r in record.regions] == [7, 3]
    assert record.regions[0].box_xyxy == (1.5, 2.0, 4.5, 6.25)
    assert record.regions[0].captions == ("object 0",)
    assert record.regions[0].keypoints == ((1.5, 2.5, 2), (0.5, 0.5, 0))  # half a pixel, of detectron2's loader
    rows = [record.read_mask(region).astype(int).tolist() for region in record.regions]
    assert rows == recorded["masks"]["rows"]


def test_metadata_numbers_things_and_stuff():
    facts = metadata_of(COCO_PANOPTIC)
    assert len(facts["thing_classes"]) == len(facts["stuff_classes"]) == 133
    assert facts["thing_dataset_id_to_contiguous_id"][90] == 79
    assert facts["stuff_dataset_id_to_contiguous_id"][92] == 80
    assert Classes.of_metadata(SimpleNamespace(**facts)) == Classes.of(COCO_PANOPTIC)


def test_metadata_without_ids_has_its_numbers():
    classes = Classes.of_metadata(SimpleNamespace(thing_classes=["a", "b"]))
    assert classes.categories == (Category(0, "a"), Category(1, "b"))
    both = SimpleNamespace(thing_classes=["a"], stuff_classes=["b", "c"])
    with pytest.raises(DataError, match="distinct ids"):
        Classes.of_metadata(both)
    with pytest.raises(DataError, match="distinct ids"):
        Classes.of_metadata(SimpleNamespace())


def test_regions_become_tensors():
    record = cases.predicted_record()
    found = region_tensors(record, record.regions, Classes.of(cases.CATEGORIES))
    assert found.boxes_xyxy.tolist() == [[x0, y0, x1, y1] for y0, y1, x0, x1 in cases.PREDICTED]
    assert found.labels.tolist() == [0, 1, 0]
    assert found.masks.flatten(1).sum(1).tolist() == [30, 54, 4]
    with pytest.raises(DataError, match=r"no category(.|\n)*region 1"):
        region_tensors(record, [replace(record.regions[0], category_id=4)], Classes.of(cases.CATEGORIES))


def test_fields_of_any_form_become_regions():
    record = cases.predicted_record()
    found = region_tensors(record, record.regions, Classes.of(cases.CATEGORIES))
    boxes = SimpleNamespace(tensor=found.boxes_xyxy)
    instances = stand_in(
        pred_boxes=boxes,
        pred_classes=found.labels,
        pred_masks=SimpleNamespace(tensor=found.masks),
        scores=found.scores,
        pred_captions=found.captions,
    )
    again = from_instances(instances, cases.CATEGORIES, image_id="five")
    for mine, first in zip(again.regions, record.regions, strict=True):
        assert mine == replace(first, score=pytest.approx(first.score))
    bare = from_instances(stand_in(gt_boxes=boxes), cases.CATEGORIES)
    assert [(r.category_id, r.mask, r.score) for r in bare.regions] == [(None, None, None)] * 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pred_boxes": SimpleNamespace(tensor=torch.zeros(1, 5)), "scores": torch.ones(1)}, "four finite numbers"),
        ({"scores": torch.ones(1), "pred_masks": torch.zeros(1, 28, 28)}, "another size"),
        ({"scores": torch.ones(1), "pred_classes": torch.tensor([9])}, "A class is not known"),
    ],
)
def test_fields_that_no_record_has_are_refused(fields, message):
    with pytest.raises(DataError, match=message):
        from_instances(stand_in(**fields), cases.CATEGORIES)


def test_maps_of_labels_become_records():
    panoptic = torch.full((4, 6), -1)
    panoptic[1:, :2], panoptic[1:, 2:4], panoptic[0] = 1000, 1001, 2000
    record = from_panoptic(panoptic, None, cases.CATEGORIES)
    assert [(r.id, r.category_id) for r in record.regions] == [(1001, 7), (1002, 7), (2001, 90)]
    assert measure_segments(record.id_map).areas.tolist() == [6, 6, 6, 6]


def test_a_map_must_show_what_its_list_names():
    with pytest.raises(DataError, match=r"disagree(.|\n)*\[2\]"):
        from_panoptic(torch.ones(2, 2, dtype=torch.int32), [{"id": 2, "category_id": 0}, {"id": 1, "category_id": 0}],
                      cases.CATEGORIES)  # fmt: skip


def test_texts_are_chosen_like_tensors():
    texts = Texts(["a", "b", "c"])
    assert texts[1] == "b"
    assert texts[torch.tensor([2, 0])] == ["c", "a"]
    assert texts[torch.tensor([True, False, True])] == ["a", "c"]
    assert texts[1:] == ["b", "c"]
    assert Texts.cat([texts, Texts([])]) == texts
    assert len(Texts([])[torch.zeros(0, dtype=torch.bool)]) == 0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image_id": 1, "annotations": []}, "lacks the field 'file_name'"),
        ({"file_name": "a.jpg", "sem_seg_file_name": "a.png"}, "Semantic maps without segments"),
        ({"file_name": "a.jpg", "annotations": [{"category_id": 0, "bbox": [0, 0, 1, 1, 30], "bbox_mode": 4}]}, "box"),
        ({"file_name": "a.jpg", "annotations": [{"category_id": 0}]}, "lacks the field 'bbox'"),
    ],
)
def test_entries_that_cannot_be_read_are_named(item, message):
    with pytest.raises(DataError, match=message):
        entry_of(item, "detectron2.mine[0]")


def test_without_the_library_the_message_says_what_to_do():
    try:
        import detectron2  # noqa: F401
    except ModuleNotFoundError:
        with pytest.raises(MissingDependencyError, match=r"requirements/detectron2\.txt"):
            library("structures")
    else:
        pytest.skip("detectron2 is installed: the message for those without it was not checked")


def test_instances_go_there_and_back(real):
    record = cases.predicted_record()
    instances = to_instances(record, cases.CATEGORIES)
    assert isinstance(instances.pred_boxes, real.Boxes)
    again = from_instances(instances, cases.CATEGORIES, image_id="five")
    assert [replace(r, score=None) for r in again.regions] == [replace(r, score=None) for r in record.regions]
    chosen = instances[instances.scores > 0.5]
    assert chosen.pred_captions == ["thing 0", "thing 1"]
    assert real.Instances.cat([chosen, instances]).pred_captions == ["thing 0", "thing 1", *instances.pred_captions]


def test_true_instances_have_their_own_kinds(real, reader):
    record = reader[0]
    record.regions[2].is_crowd = True
    record.regions[0].keypoints = ((1.5, 2.5, 2),)
    instances = to_instances(record, reader.categories, truth=True)
    assert isinstance(instances.gt_masks, real.BitMasks)
    assert isinstance(instances.gt_keypoints, real.Keypoints)
    assert instances.gt_masks.get_bounding_boxes().tensor.tolist() == instances.gt_boxes.tensor.tolist()
    again = from_instances(instances, reader.categories)
    assert [r.keypoints for r in again.regions] == [((1.5, 2.5, 2),), ()]
    assert len(to_instances(reader[0], reader.categories, things_only=True)) == 2


def test_roi_masks_are_pasted(real):
    boxes = real.Boxes(torch.tensor([[2.0, 1.0, 10.0, 7.0]]))
    instances = real.Instances(cases.SIZE, pred_boxes=boxes, pred_masks=real.ROIMasks(torch.ones(1, 28, 28)))
    (region,) = from_instances(instances, cases.CATEGORIES).regions
    assert region.mask == encode_mask(np.pad(np.ones((6, 8), bool), ((1, 5), (2, 6))))


def test_a_catalog_entry_is_read(real, world, reader, recorded):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    name = "locap_test_panoptic"
    DatasetCatalog.register(name, lambda: at(world, recorded["catalog"]["panoptic"]))
    MetadataCatalog.get(name).set(**metadata_of(reader.categories))
    try:
        found = CatalogReader(f"detectron2.{name}")
        assert found.categories == tuple(replace(c, color=c.color or (128,) * 3) for c in cases.CATEGORIES)
        assert [found[i] for i in range(len(found))] == [reader[0]]
        with pytest.raises(UsageError, match=r"did you mean detectron2\.locap_test_panoptic"):
            CatalogReader("detectron2.locap_test_panoptics")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_our_data_sets_are_published(real, coco_mini):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from locap.datasets.detectron2_catalog import catalog_function, register_datasets

    kept = set(DatasetCatalog.keys())
    new = register_datasets(coco_mini)
    try:
        assert "pix2cap_coco_val_with_sem_seg" in new
        assert "coco_2017_val_panoptic" not in new  # detectron2 has it
        assert register_datasets(coco_mini) == []
        (*_, item) = DatasetCatalog.get("pix2cap_coco_val_with_sem_seg")
        assert item["segments_info"][0]["captions"]
        metadata = MetadataCatalog.get("pix2cap_coco_val_with_sem_seg")
        builtin = MetadataCatalog.get("coco_2017_val_panoptic")
        kinds = ("classes", "colors", "dataset_id_to_contiguous_id")
        for key in (f"{part}_{kind}" for part in ("thing", "stuff") for kind in kinds):
            assert metadata.get(key) == builtin.get(key)
        assert len(DatasetCatalog.get("visual_genome_val")[0]["annotations"]) > 1
    finally:
        for name in set(DatasetCatalog.keys()) - kept:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    _same_as_detectron2s(coco_mini, catalog_function("coco_2017_val_panoptic", coco_mini)())


def _same_as_detectron2s(root, ours):
    from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json

    folders = (str(root / "val2017"), str(root / "panoptic_val2017"))
    file, metadata = str(root / "annotations" / "panoptic_val2017.json"), metadata_of(COCO_PANOPTIC)
    theirs = {item["image_id"]: item for item in load_coco_panoptic_json(file, *folders, metadata)}
    assert len(ours) == len(theirs) == 13
    for item in ours:
        assert {key: item[key] for key in theirs[item["image_id"]]} == theirs[item["image_id"]]
