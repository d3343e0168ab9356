import torch

from locap.modeling.region_encoders.region_tokens import RegionTokens, relative_geometry


def test_relative_geometry_is_seen_from_the_region():
    regions = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    others = torch.tensor([[0.5, 0.5, 0.2, 0.2], [1.0, 0.5, 0.1, 0.4], [0.0, 0.0, 0.1, 0.1]])
    seen = relative_geometry(regions, others)
    torch.testing.assert_close(seen[0, 0], torch.tensor([0.5, 0.5, 0.0, 0.2, 0.2]))
    torch.testing.assert_close(seen[0, 1], torch.tensor([0.75, 0.5, 0.5 / 2**0.5, 0.1, 0.4]))
    torch.testing.assert_close(seen[0, 2], torch.tensor([0.25, 0.25, 0.5, 0.1, 0.1]))


def test_others_do_not_depend_on_where_the_picture_begins():
    torch.manual_seed(0)
    tokens = RegionTokens(("others",), dim=8)
    masks = torch.full((2, 16, 16), -20.0)
    masks[0, 2:5, 2:5], masks[1, 2:5, 8:12] = 20.0, 20.0
    hidden, queries = torch.randn(2, 8), torch.tensor([0])
    here = tokens(hidden, torch.zeros(8), queries, masks)
    there = tokens(hidden, torch.zeros(8), queries, masks.roll(4, dims=-2))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(here[:, 1], tokens(hidden, torch.zeros(8), queries, masks.roll(4, dims=-1))[:, 0])
