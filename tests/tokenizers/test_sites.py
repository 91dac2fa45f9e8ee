"""Sites: cut and put together again, in the subject's own order."""

import pytest
import torch

from brainjanus.core.errors import UserError
from brainjanus.tokenizers.sites import Sites

ORDER = torch.tensor([3, 0, 9, 5, 1, 2, 8, 7, 4, 6])


def values(rows=3):
    return torch.randn(rows, 10, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [1, 3, 4, 5, 10, 16])
def test_joining_is_the_inverse_of_cutting(size):
    sites = Sites(ORDER, size)
    patches = sites.cut(values())
    assert patches.shape == (3, -(-10 // size), size) == (3, sites.num_patches, size)
    assert torch.equal(sites.join(patches), values())
    assert float(patches.abs().sum()) == pytest.approx(float(values().abs().sum()), rel=1e-5)  # filled up with zeros


def test_a_patch_is_consecutive_sites_of_the_cortical_order():
    patches = Sites(ORDER, 4).cut(values())
    assert torch.equal(patches[:, 0], values()[:, [3, 0, 9, 5]])
    assert torch.equal(patches[:, 2], torch.cat([values()[:, [4, 6]], torch.zeros(3, 2)], dim=1))


def test_what_is_said_of_the_places_behind_the_last_site_is_left_out():
    sites = Sites(ORDER, 4)
    patches = sites.cut(values())
    patches[:, 2, 2:] = 7
    assert torch.equal(sites.join(patches), values())


def test_each_site_knows_its_patch():
    sites = Sites(ORDER, 4)
    assert sites.patch_of().tolist() == [0, 1, 1, 0, 2, 0, 2, 1, 1, 0]
    patch_numbers = torch.arange(3.0)[None, :, None].expand(1, 3, 4)
    assert torch.equal(sites.join(patch_numbers)[0].long(), sites.patch_of())


def test_the_order_is_part_of_the_weights():
    other = Sites(torch.arange(10), 4)
    other.load_state_dict(Sites(ORDER, 4).state_dict())
    assert torch.equal(other.cut(values()), Sites(ORDER, 4).cut(values()))


def test_says_what_is_wrong():
    with pytest.raises(UserError, match=r"response: expected 10 sites, got 8. Was it made with another mask\? Prepare"):
        Sites(ORDER, 4).cut(values()[:, :8])
