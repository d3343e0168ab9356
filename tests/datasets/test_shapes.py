"""The embedded data set: reproducible, balanced, legible, and its records are consistent."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from locap.datasets.records import box_of_mask, record_from_json, record_to_json
from locap.datasets.shapes import CATEGORIES, KEYPOINT_NAMES, SPLITS, Shapes, holds, read_caption
from locap.datasets.shapes_world.draw import draw_scene
from locap.datasets.shapes_world.scene import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Scene, sample_scene
from locap.utils.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
_DIGEST = """
import importlib.util
spec = importlib.util.spec_from_file_location("locap_entry", {entry!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import hashlib, json
from locap.datasets.records import record_to_json
from locap.datasets.shapes import Shapes
record = Shapes(10, seed=3)[7]
text = json.dumps(record_to_json(record), sort_keys=True)
print(hashlib.sha256(record.image.tobytes() + text.encode()).hexdigest())
"""


def things(record):
    return [region for region in record.regions if region.keypoints]


@pytest.fixture(scope="module")
def records():
    return list(Shapes(300))


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(Random(f"test {k}"), 1.0, 1.0) for k in range(150)]


def drawn_alone(scene: Scene, index: int, side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with one object only, and its whole mask."""
    alone = Scene(scene.width, scene.height, scene.grounds, scene.border, [scene.objects[index]])
    image, ids = draw_scene(alone, side, side)
    return image, ids == 1


def test_a_scene_is_the_same_in_every_process():
    record = Shapes(10, seed=3)[7]
    text = json.dumps(record_to_json(record), sort_keys=True)
    here = hashlib.sha256(record.image.tobytes() + text.encode()).hexdigest()
    code = _DIGEST.format(entry=str(ROOT / "entry.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == here


def test_splits_and_seeds_share_no_scene():
    streams = [Shapes(60, seed=seed, split=split) for seed in (0, 1) for split in SPLITS]
    pictures = {record.image.tobytes() for stream in streams for record in stream}
    assert len(pictures) == 60 * len(streams)


def test_a_longer_data_set_begins_with_the_shorter_one():
    assert np.array_equal(Shapes(3)[2].image, Shapes(900)[2].image)
    assert np.array_equal(Shapes(3)[-1].image, Shapes(3)[2].image)
    assert len(list(Shapes(3))) == 3


def test_the_layout_does_not_depend_on_the_resolution():
    for index in range(20):
        small, usual, large = (Shapes(20, image_size=side)[index] for side in (96, 128, 512))
        for low, mid, high in zip(small.regions, usual.regions, large.regions, strict=True):
            assert low.attributes == mid.attributes == high.attributes
            assert low.captions == mid.captions == high.captions
            for low_point, mid_point, high_point in zip(low.keypoints, mid.keypoints, high.keypoints, strict=True):
                assert np.allclose(np.array(mid_point[:2]) * 4, high_point[:2])
                assert np.allclose(np.array(low_point[:2]) * 4 / 3, mid_point[:2])
        assert (np.kron(usual.id_map, np.ones((4, 4), int)) == large.id_map).mean() > 0.95


@pytest.mark.parametrize("size", [(96, 160), (200, 120), 32])
def test_other_formats(size):
    height, width = (size, size) if isinstance(size, int) else size
    for record in Shapes(15, image_size=size):
        assert record.image.shape == (height, width, 3)
        assert (record.height, record.width) == record.id_map.shape == (height, width)
        assert all(region.area > 0 for region in record.regions)


def test_records_are_consistent(records):
    kinds = {category.id: category for category in CATEGORIES}
    for record in records:
        assert record.image.dtype == np.uint8
        assert record.id_map.dtype == np.int32
        assert np.unique(record.id_map).tolist() == [region.id for region in record.regions]
        assert 3 <= len(things(record)) <= 8
        for region in record.regions:
            mask, kind = record.id_map == region.id, kinds[region.category_id]
            assert region.area == mask.sum()
            assert region.box_xyxy == box_of_mask(mask)
            assert kind.name == region.attributes["shape" if kind.is_thing else "ground"]
            assert len(region.captions) == (3 if kind.is_thing else 2)


def test_keypoints_lie_on_their_object(records):
    for record in records:
        for region in things(record):
            assert len(region.keypoints) == len(KEYPOINT_NAMES)
            for x, y, visibility in region.keypoints:
                if visibility:
                    assert (record.id_map[int(y), int(x)] == region.id) == (visibility == 2)
            (_, top, seen), (_, bottom, also_seen) = region.keypoints[1:3]
            assert top < bottom or not (seen and also_seen)


def test_every_object_stays_at_least_half_visible(scenes):
    covered = 0
    for scene in scenes:
        ids = draw_scene(scene, 128, 128)[1]
        for index in range(len(scene.objects)):
            whole, visible = drawn_alone(scene, index)[1].sum(), (ids == index + 1).sum()
            assert visible >= 0.5 * whole
            assert visible >= 100
            covered += visible < 0.97 * whole
    assert covered > 0.1 * sum(len(scene.objects) for scene in scenes)  # occlusion does happen


def test_everything_is_balanced(records):
    for name, words in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES)):
        counts = Counter(region.attributes[name] for record in records for region in things(record))
        assert set(counts) == set(words)
        assert min(counts.values()) > 0.75 * max(counts.values())
    counts = Counter(region.attributes["relation"] for record in records for region in things(record))
    assert min(counts[relation] for relation in RELATIONS) > 0.5 * max(counts.values())


def test_a_size_word_can_be_decided_from_the_picture(scenes):
    sides = {size: [] for size in SIZES}
    for scene in scenes:
        for index, item in enumerate(scene.objects):
            x0, y0, x1, y1 = box_of_mask(drawn_alone(scene, index)[1])
            if min(x0, y0) > 0 and max(x1, y1) < 128:  # not cut off
                sides[item.size].append(max(x1 - x0, y1 - y0))
    assert max(sides["small"]) < min(sides["medium"])
    assert max(sides["medium"]) < min(sides["large"])


def test_colours_are_far_apart():
    colours = [np.array(rgb) for rgb in COLOURS.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 100
    grounds = [np.array(category.color) for category in CATEGORIES if not category.is_thing]
    assert min(np.linalg.norm(a - b) for a in colours for b in grounds) > 80


@pytest.mark.parametrize("side", [96, 128])
def test_textures_are_legible(scenes, side):
    """The dark share tells plain from dotted from striped and checkered, changes along an axis tell these two apart."""
    wrong, total = 0, 0
    for scene in scenes:
        for index, item in enumerate(scene.objects):
            image, mask = drawn_alone(scene, index, side)
            for _ in range(2):  # leave the outline out
                mask = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
            dark = image.max(2) < 128  # the brightest channel of every colour is brighter, of every shade darker
            share = dark[mask].mean()
            across = (dark[:, 1:] != dark[:, :-1])[mask[:, 1:]].mean()
            down = (dark[1:] != dark[:-1])[mask[1:]].mean()
            guess = "striped" if across < 0.55 * down else "checkered"
            guess = "plain" if share < 0.02 else "dotted" if share < 0.37 and guess != "striped" else guess
            wrong, total = wrong + (guess != item.texture), total + 1
            assert (guess == "plain") == (item.texture == "plain")
    assert wrong < 0.08 * total


def test_a_record_survives_json_and_its_captions_still_hold(records):
    for record in records[:20]:
        again = record_from_json(json.loads(json.dumps(record_to_json(record))))
        assert np.array_equal(again.read_id_map(), record.id_map)
        for region, known in zip(again.regions, record.regions, strict=True):
            assert region.captions == known.captions
            assert False not in holds(read_caption(region.captions[0]), region, again).values()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_scenes": 5, "split": "tset"}, "did you mean test"),
        ({"num_scenes": 0}, "1 or more"),
        ({"num_scenes": 5, "image_size": 8}, "32 or more"),
        ({"num_scenes": 5, "image_size": (64, 64, 3)}, "(height, width)"),
        ({"num_scenes": 5, "image_size": 64.5}, "whole pixels"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message):
    with pytest.raises(DataError) as caught:
        Shapes(**arguments)
    assert message in str(caught.value)


def test_an_index_out_of_range_ends_the_sequence():
    with pytest.raises(IndexError):
        Shapes(5)[5]


def test_drawing_is_fast():
    scenes = Shapes(200)
    durations = []
    for index in range(100):
        start = time.process_time()
        scenes[index]
        durations.append(time.process_time() - start)
    assert np.median(durations) < 0.01  # about 0.0015 on an idle core
