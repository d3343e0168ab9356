"""By which protocols a data set is scored, and what is checked of that before anything is computed."""

from __future__ import annotations

import pytest
from omegaconf import read_write

from locap.evaluation.results import ProtocolResult
from locap.trainer.data import open_eval_sets
from locap.trainer.scoring import PANOPTIC_ON, check_protocols, headline, protocol_options, protocols_of
from locap.utils.errors import UsageError


def test_segments_are_scored_only_where_they_are_predicted(pix2cap):
    cfg = pix2cap("PROTOCOLS", "[panoptic]")
    check_protocols(cfg, open_eval_sets(cfg))
    changed = pix2cap("PROTOCOLS", "[panoptic]", PANOPTIC_ON, "false", "MODEL.DECODER.TEST.INSTANCE_ON", "true")
    with pytest.raises(UsageError, match="told not to return") as caught:
        check_protocols(changed, open_eval_sets(changed))
    assert caught.value.fix == f"--overrides {PANOPTIC_ON} true"


def test_the_protocol_follows_from_the_task(configure, pix2cap):
    tasks = ("trace", "caption", "region", "refer", "detect")
    cfg = configure("DATASETS.TEST", f"[{', '.join(f'{task}:shapes_val' for task in tasks)}]")
    sets = open_eval_sets(cfg)
    check_protocols(cfg, sets)
    wanted = ["narrative_trace", "image_captioning", "region_captioning", "referring", "dense_captioning"]
    assert [protocols_of(each, cfg) for each in sets] == [[name] for name in wanted]
    with read_write(cfg):
        cfg.PROTOCOLS = ["panoptic"]
    assert [protocols_of(each, cfg) for each in sets] == [["panoptic"]] * 5
    assert protocols_of(open_eval_sets(pix2cap())[0], pix2cap()) == ["panoptic_captioning"]


def test_talks_cannot_be_scored(configure):
    cfg = configure("DATASETS.TEST", "[instruct:shapes_val]")
    with pytest.raises(UsageError, match="No protocol scores the task instruct") as caught:
        check_protocols(cfg, open_eval_sets(cfg))
    assert "refer" in caught.value.allowed


def test_variants_belong_to_one_data_set(configure):
    names = ("DATASETS.TEST", "[refer:shapes_val, refer:shapes_test]")
    cfg = configure(*names, "EVAL_VARIANTS", "{refer:shapes_test: pixellm}")
    first, second = open_eval_sets(cfg)
    assert "referring" not in protocol_options(first, cfg)
    assert protocol_options(second, cfg)["referring"] == {"variant": "pixellm"}
    both = configure(*names, "EVAL_VARIANTS", "{refer:shapes_test: pixellm}", "PROTOCOLS", "[referring, detection]")
    assert "detection" not in protocol_options(second, both)
    of_task = configure(*names, "EVAL_VARIANTS", "{refer:shapes_test: pixellm, refer: pixelllm}")
    chosen = [protocol_options(each, of_task)["referring"]["variant"] for each in (first, second)]
    assert chosen == ["pixelllm", "pixellm"], "a task's, unless the data set has its own"
    wrong = configure("EVAL_VARIANTS", "{refer:shapes_val: pixelm}")
    with pytest.raises(UsageError, match="no such variant") as caught:
        check_protocols(wrong, open_eval_sets(wrong))
    assert "pixellm" in caught.value.allowed


def test_headlines_say_which_data_set_where_there_are_several():
    refer = [ProtocolResult("referring", "standard", {"box_precision@0.5": 0.5, "ciou": 0.25, "giou": 0.75})]
    trace = [ProtocolResult("narrative_trace", "standard", {"euclidean_error": 0.1, "point_l1": 0.2, "coverage": 0.5})]
    assert headline({"refer:a": refer}) == {"P@0.5": 50, "cIoU": 25, "gIoU": 75}
    assert headline({"refer:a": refer, "trace:b": trace}) == {
        "P@0.5 (refer:a)": 50,
        "cIoU (refer:a)": 25,
        "gIoU (refer:a)": 75,
        "word error % (trace:b)": 10,
        "point L1 % (trace:b)": 20,
        "coverage % (trace:b)": 50,
    }
