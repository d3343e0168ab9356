"""Expressions as regions of their own."""

from __future__ import annotations

import numpy as np
import pytest

from locap.datasets.expressions import PerExpression
from locap.datasets.readers import open_expressions
from locap.datasets.records import Record, Region, decode_mask, encode_mask
from locap.datasets.shapes import CATEGORIES, Shapes


class OneRecord:
    categories = CATEGORIES

    def __init__(self, record: Record) -> None:
        self.record = record

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return self.record


def test_a_region_per_expression_with_the_mask_of_its_object():
    scenes = Shapes(2, image_size=48)
    view = PerExpression(scenes)
    assert (len(view), view.categories) == (2, scenes.categories)
    scene, record = scenes[1], view[1]
    said = [(region, text) for region in scene.regions for text in region.expressions]
    assert [region.id for region in record.regions] == list(range(1, len(said) + 1))
    assert record.id_map is None, "its values are the ids of objects"
    for region, (thing, text) in zip(record.regions, said, strict=True):
        assert region.expressions == (text,)
        assert region.box_xyxy == thing.box_xyxy
        np.testing.assert_array_equal(decode_mask(region.mask), scene.id_map == thing.id)
    np.testing.assert_array_equal(record.image, scene.image)


def test_blank_expressions_and_crowds_are_left_out():
    mask = encode_mask(np.ones((4, 4), bool))
    regions = [
        Region(9, mask=mask, expressions=("a", " ", "b")),
        Region(3, box_xyxy=(0, 0, 2, 2), expressions=("c",)),
        Region(4, expressions=("many",), is_crowd=True),
        Region(5, captions=("d",)),
    ]
    record = PerExpression(OneRecord(Record(1, 4, 4, regions=regions)))[0]
    assert [(r.id, r.expressions, r.mask) for r in record.regions] == [
        (1, ("a",), mask),
        (2, ("b",), mask),
        (3, ("c",), None),
    ]


@pytest.mark.parametrize(("name", "own_ids"), [("refcoco_unc_testA", True), ("vg_densecap_test", False)])
def test_readers_of_expressions_know_their_ids(coco_mini, name, own_ids):
    reader = open_expressions(name, coco_mini)
    assert isinstance(reader, PerExpression) != own_ids
    assert all(len(region.expressions) == 1 for k in range(len(reader)) for region in reader[k].regions)
