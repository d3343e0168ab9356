"""What an evaluation needs of the model is checked before anything is computed."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from locap.datasets.records import Category
from locap.trainer.evaluate import PANOPTIC_ON, check_protocols
from locap.utils.errors import UsageError


def test_segments_are_scored_only_where_they_are_predicted():
    cfg = OmegaConf.create({"PROTOCOLS": ["panoptic"], "EVAL_PROTOCOL": "standard", "DATASETS": {"TEST": ["x"]}})
    check_protocols(cfg, [Category(1, "cat")])  # a system without such a switch
    OmegaConf.update(cfg, PANOPTIC_ON, False, force_add=True)
    with pytest.raises(UsageError, match="told not to return") as caught:
        check_protocols(cfg, [Category(1, "cat")])
    assert caught.value.fix == f"--overrides {PANOPTIC_ON} true"
