"""What DATASETS and the keys about its items may say."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from locap.trainer.entries import Entry, eval_groups, train_entries
from locap.utils.config import load_config, save_config
from locap.utils.errors import UsageError


def test_prompted_systems_name_their_data_sets_with_a_task(configure, pix2cap):
    cfg = configure("DATASETS.TRAIN", "[refer:a, trace:a]", "DATASETS.TEST", "[refer:b, region:b]")
    assert train_entries(cfg) == [Entry("a", "refer"), Entry("a", "trace")]
    assert eval_groups(cfg) == [(Entry("b", "refer"),), (Entry("b", "region"),)]
    cfg = pix2cap("DATASETS.TRAIN", "[a, a]", "DATASETS.TEST", "[b, c]")
    assert train_entries(cfg) == [Entry("a"), Entry("a")]
    assert eval_groups(cfg) == [(Entry("b"), Entry("c"))]


def read(cfg):
    return train_entries(cfg), eval_groups(cfg)


@pytest.mark.parametrize(
    ("prompted", "changes", "message", "fix"),
    [
        (True, ("DATASETS.TRAIN", "[shapes_train]"), "named with its task", "region:shapes_train"),
        (True, ("DATASETS.TRAIN", "[rifer:shapes_train]"), "Unknown task", None),
        (True, ("DATASETS.TRAIN", "[refer:a, refer:a]"), "twice", "DATASETS.WEIGHTS"),
        (True, ("DATASETS.TRAIN", "[]"), "No data set", None),
        (True, ("DATASETS.WEIGHTS", "{refer:shapes_trian: 2}"), "not in DATASETS.TRAIN", "refer:shapes_train"),
        (True, ("DATASETS.WEIGHTS", "{refer:shapes_train: 0}"), "not positive", "leave the data set out"),
        (True, ("DATASETS.TEST", "[shapes_val]"), "named with its task", "region:shapes_val"),
        (True, ("EVAL_VARIANTS", "{refer:shapes_train: pixellm}"), "not in DATASETS.TEST", "refer:shapes_val"),
        (False, ("DATASETS.TRAIN", "[refer:shapes_train]"), "takes no prompts", "write shapes_train"),
        (False, ("DATASETS.WEIGHTS", "{a: 1}"), "not in DATASETS.TRAIN", "DATASETS.WEIGHTS.a null"),
    ],
)
def test_wrong_names_are_told_with_what_is_allowed(configure, pix2cap, prompted, changes, message, fix):
    cfg = (configure if prompted else pix2cap)(*changes)
    with pytest.raises(UsageError, match=message) as caught:
        read(cfg)
    assert caught.value.where
    assert caught.value.allowed or caught.value.fix
    if fix:
        assert fix in caught.value.fix


def test_a_configuration_with_tasks_reads_back_as_itself(configure, tmp_path):
    weights = ("DATASETS.WEIGHTS", "{refer:shapes_train: 2.5}", "DATASETS.SAMPLES_PER_EPOCH", "7")
    cfg = configure(*weights, "EVAL_VARIANTS", "{refer:shapes_val: pixellm}")
    schemas = {cfg.MODEL.NAME: OmegaConf.get_type(cfg.MODEL)}
    again = load_config([save_config(cfg, tmp_path / "again.yaml")], model_schemas=schemas)
    assert again == cfg
    assert again.DATASETS.WEIGHTS == {"refer:shapes_train": 2.5}
