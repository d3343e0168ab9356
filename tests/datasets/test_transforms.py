"""Large-scale jitter and the mappers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from locap.datasets.records import Category, Record, Region
from locap.datasets.transforms.geometry import draw_jitter, jitter, resize, shortest_side_size
from locap.datasets.transforms.mapper import EvalMapper, PanopticCaptionMapper
from locap.utils.errors import DataError, UsageError

PADDING = 256**3 - 1
PERSON = Category(1, "person")


@pytest.mark.parametrize(
    ("size_hw", "scale", "position", "resized", "offset"),
    [
        ((480, 640), 1.0, 0.7, (768, 1024), (0, 0)),
        ((480, 640), 2.0, 0.0, (1536, 2048), (0, 0)),
        ((480, 640), 2.0, 0.5, (1536, 2048), (256, 512)),  # one draw moves both axes
        ((480, 640), 1.5, 0.3, (1152, 1536), (38, 154)),  # 38.4 and 153.6
        ((640, 480), 0.1, 0.9, (102, 77), (0, 0)),  # 102.4 and 76.8
        ((480, 5000), 0.1, 0.9, (10, 102), (0, 0)),
        ((1, 5000), 0.1, 0.9, (1, 102), (0, 0)),  # never a side of 0
    ],
)
def test_jitter_arithmetic(size_hw, scale, position, resized, offset):
    drawn = jitter(*size_hw, size=1024, flip="none", scale=scale, position=position)
    assert (drawn.resized, drawn.offset) == (resized, offset)


def test_rounding_is_half_to_even():
    assert jitter(5, 10, size=5, flip="none", scale=1, position=0).resized == (2, 5)  # 2.5
    assert jitter(7, 10, size=5, flip="none", scale=1, position=0).resized == (4, 5)  # 3.5
    assert jitter(6, 8, size=5, flip="none", scale=1.6, position=0.5).offset == (0, 2)  # 0.5 and 1.5
    assert jitter(6, 8, size=5, flip="none", scale=1.6, position=0.5).resized == (6, 8)


def picture(height=12, width=16):
    ids = np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width)
    return np.stack([ids % 256, ids // 7 % 256, ids * 3 % 256], -1).astype(np.uint8), ids


def test_padding_and_flips_are_exact_without_scaling():
    image, ids = picture()
    for flip, view in (
        ("none", np.s_[:, :]),
        ("horizontal", np.s_[:, ::-1]),
        ("vertical", np.s_[::-1, :]),
    ):
        drawn = jitter(12, 16, size=20, flip=flip, scale=0.8, position=0.4)  # ratio 1
        assert drawn.resized == (12, 16)
        out, out_ids = drawn.apply_image(image), drawn.apply_id_map(ids)
        assert out.shape == (20, 20, 3)
        assert out_ids.dtype == np.int32
        np.testing.assert_array_equal(out[:12, :16], image[view])
        np.testing.assert_array_equal(out_ids[:12, :16], ids[view])
        assert (out[12:] == 128).all()
        assert (out[:, 16:] == 128).all()
        assert (out_ids[12:] == PADDING).all()
        assert (out_ids[:, 16:] == PADDING).all()


def test_crop_is_a_window():
    image, ids = picture()
    drawn = jitter(12, 16, size=8, flip="none", scale=2, position=0.5)
    assert (drawn.resized, drawn.offset) == ((12, 16), (2, 4))
    np.testing.assert_array_equal(drawn.apply_image(image), image[2:10, 4:12])
    np.testing.assert_array_equal(drawn.apply_id_map(ids), ids[2:10, 4:12])


@pytest.mark.parametrize("seed", range(8))
def test_masks_stay_on_their_pixels(seed):
    ids = np.kron(np.arange(1, 13, dtype=np.int32).reshape(3, 4), np.ones((16, 16), np.int32))
    image = np.stack([ids * 20] * 3, -1).astype(np.uint8)
    drawn = draw_jitter(np.random.default_rng(seed), 48, 64, size=64, min_scale=0.5, max_scale=2)
    out, out_ids = drawn.apply_image(image), drawn.apply_id_map(ids)
    inside = out_ids != PADDING
    assert (out[~inside] == 128).all()
    agree = np.abs(out[..., 0][inside].astype(int) - out_ids[inside] * 20) <= 2
    assert agree.mean() > 0.75  # the rest lies on blurred edges


def test_draws_cover_flips_scales_and_positions():
    drawn = [draw_jitter(np.random.default_rng(i), 48, 64, size=64, min_scale=0.1, max_scale=2) for i in range(200)]
    assert 70 < sum(one.flip == "horizontal" for one in drawn) < 130
    widths = [one.resized[1] for one in drawn]
    assert min(widths) < 20
    assert max(widths) > 120
    assert len({one.offset for one in drawn}) > 50
    assert draw_jitter(np.random.default_rng(3), 48, 64, size=64, min_scale=0.1, max_scale=2) == drawn[3]


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((333, 500), (800, 1201)),
        ((300, 640), (625, 1333)),
        ((800, 800), (800, 800)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_evaluation_size(size_hw, expected):
    assert shortest_side_size(*size_hw, 800, 1333) == expected


def test_resizing_to_the_same_size_changes_nothing():
    image, _ = picture()
    assert resize(image, (12, 16)) is image


def mapper_for(reader, tokenizer, **options):
    settings = {"image_size": 64, "min_scale": 0.5, "max_scale": 2.0, "seed": 5} | options
    return PanopticCaptionMapper(reader.categories, tokenizer, **settings)


def test_targets_of_an_unscaled_image(panoptic_set, tokenizer):
    reader = panoptic_set.open()
    mapper = mapper_for(reader, tokenizer, min_scale=1, max_scale=1, random_flip="none")
    sample = mapper(reader[0], epoch=0, index=0)
    targets = sample.targets
    assert (sample.image_id, sample.output_size) == (139, (48, 64))
    assert sample.image.dtype == torch.uint8
    assert sample.image.shape == (3, 64, 64)
    assert sample.image.is_contiguous()
    np.testing.assert_array_equal(sample.image[:, :48].permute(1, 2, 0).numpy(), reader[0].read_image())
    assert (sample.image[:, 48:] == 128).all()
    assert targets.segment_ids.tolist() == [1, 256, 65_543]  # the crowd takes no part
    assert targets.labels.tolist() == [0, 0, 2]
    assert targets.boxes_xyxy.tolist() == [[0, 0, 20, 24], [20, 0, 40, 24], [0, 24, 40, 48]]
    assert targets.masks().sum((1, 2)).tolist() == [480, 480, 960]
    assert (targets.id_map[48:] == PADDING).all()
    assert targets.captions == ["a man in red", "the second man ' s blue | dog\n", "the grass."]
    assert targets.caption_tokens[0].tolist() == [2, 5, 6, 7, 8, 3, 0, 0, 0, 0]
    assert targets.caption_tokens.shape == (3, 10)


def test_augmentation_is_a_function_of_seed_epoch_and_index(panoptic_set, tokenizer):
    reader = panoptic_set.open()

    def run(seed, epoch, index):
        sample = mapper_for(reader, tokenizer, seed=seed)(reader[0], epoch, index)
        return sample.image.numpy().tobytes(), sample.targets.id_map.numpy().tobytes(), sample.targets.seed

    base = run(5, 1, 2)
    np.random.default_rng(0).random(10)
    assert run(5, 1, 2) == base
    assert run(5, 1, 2)[2] >= 0
    others = [run(6, 1, 2), run(5, 2, 2), run(5, 1, 3)]
    assert len({other[0] for other in [base, *others]}) == 4
    assert len({other[2] for other in [base, *others]}) == 4


@pytest.mark.fault("R9")
def test_vanished_regions_stay_empty_or_go_with_their_captions(tokenizer):
    ids = np.ones((64, 64), np.int32)
    ids[60:, 60:] = 2
    regions = [Region(id=1, category_id=1, captions=("a man",)), Region(id=2, category_id=1, captions=("the dog",))]
    record = Record(0, 64, 64, np.zeros((64, 64, 3), np.uint8), regions, ids)
    options = {"image_size": 16, "min_scale": 4, "max_scale": 4, "seed": 1, "random_flip": "none"}
    kept = PanopticCaptionMapper([PERSON], tokenizer, **options)(record, 0, 0).targets
    assert not kept.masks()[1].any()
    assert kept.boxes_xyxy[1].tolist() == [0, 0, 0, 0]
    assert kept.captions == ["a man", "the dog"]
    dropped = PanopticCaptionMapper([PERSON], tokenizer, **options, drop_vanished=True)(record, 0, 0).targets
    assert dropped.captions == ["a man"]
    assert len(dropped) == len(dropped.caption_tokens) == len(dropped.boxes_xyxy) == 1


def test_regions_without_captions_and_images_without_regions(panoptic_set, tokenizer):
    panoptic_set.segments(0)[0]["description"] = ""
    reader = panoptic_set.open()
    mapper = mapper_for(reader, tokenizer)
    targets = mapper(reader[0], 0, 0).targets
    assert targets.captions[0] == ""
    assert (targets.caption_tokens[0] == 0).all()
    assert (targets.caption_tokens[1] != 0).any()
    record = reader[0]
    record.regions, record.id_map = [], np.zeros((48, 64), np.int32)
    targets = mapper(record, 0, 0).targets
    assert len(targets) == 0
    assert targets.boxes_xyxy.shape == (0, 4)
    assert targets.caption_tokens.shape == (0, 2)
    assert targets.masks().shape == (0, 64, 64)


def test_one_of_several_captions_is_drawn(panoptic_set, tokenizer):
    panoptic_set.segments(0)[0]["description"] = ["a man", "a dog", "the sky"]
    reader = panoptic_set.open()
    mapper = mapper_for(reader, tokenizer)
    drawn = [mapper(reader[0], epoch, 0).targets.captions[0] for epoch in range(30)]
    assert set(drawn) == {"a man", "a dog", "the sky"}


def test_the_records_arrays_are_not_aliased(tokenizer):
    pixels, ids = np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), np.int32)
    record = Record(0, 16, 16, pixels, [Region(id=1, category_id=1)], ids)
    mapper = PanopticCaptionMapper([PERSON], tokenizer, image_size=16, min_scale=1, max_scale=1, random_flip="none")
    sample = mapper(record, 0, 0)
    np.testing.assert_array_equal(sample.targets.id_map.numpy(), ids)
    sample.image.fill_(9)
    sample.targets.id_map.fill_(9)
    assert not pixels.any()
    assert (ids == 1).all()


def test_bad_options_and_categories(panoptic_set, tokenizer):
    reader = panoptic_set.open()
    with pytest.raises(UsageError, match="RANDOM_FLIP"):
        mapper_for(reader, tokenizer, random_flip="diagonal")
    with pytest.raises(UsageError, match="0 < min <= max"):
        mapper_for(reader, tokenizer, min_scale=3.0)
    mapper = PanopticCaptionMapper(reader.categories[:1], tokenizer, image_size=64)
    with pytest.raises(DataError, match=r"unknown category(.|\n)*image 139, region 65543"):
        mapper(reader[0], 0, 0)


def test_evaluation_mapper(panoptic_set):
    record = panoptic_set.open()[0]
    sample = EvalMapper()(record)
    assert sample.image.shape == (3, 800, 1067)
    assert sample.output_size == (48, 64)
    assert sample.targets is None
    plain = EvalMapper(shortest=None)(record)
    np.testing.assert_array_equal(plain.image.permute(1, 2, 0).numpy(), record.read_image())


def test_mappers_travel_to_workers(panoptic_set, tokenizer):
    reader = panoptic_set.open()
    mapper = mapper_for(reader, tokenizer)
    again, other = pickle.loads(pickle.dumps((mapper, reader)))
    torch.testing.assert_close(
        again(other[0], 1, 0).targets.caption_tokens, mapper(reader[0], 1, 0).targets.caption_tokens
    )
