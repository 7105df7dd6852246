"""Nearest decoder rows against the full matrix of cosines."""

import pytest
import torch

from saeflow.features.decoder_geometry import decoder_geometry


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_neighbours_are_those_of_the_full_cosine_matrix(block):
    decoder, encoder = normal(40, 5), normal(5, 40, seed=1)
    found = decoder_geometry(decoder, encoder, 4, block)
    unit = decoder / decoder.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-2)
    expected = cosines.sort(dim=1, descending=True)
    assert torch.equal(found.neighbours, expected.indices[:, :4])
    torch.testing.assert_close(found.cosines, expected.values[:, :4])
    torch.testing.assert_close(found.norms, decoder.norm(dim=1))
    torch.testing.assert_close(found.encoder_cosine[3], unit[3] @ encoder[:, 3] / encoder[:, 3].norm())


def test_equal_cosines_come_in_the_order_of_the_latents():
    decoder = torch.eye(4).double()
    found = decoder_geometry(decoder, decoder.T, 3)
    assert found.neighbours.tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_a_zero_row_is_no_one_s_copy():
    decoder = normal(6, 3)
    decoder[2] = 0
    found = decoder_geometry(decoder, decoder.T, 2)
    assert found.cosines[2].tolist() == [0, 0]


def test_no_more_neighbours_than_there_are():
    assert decoder_geometry(normal(3, 2), normal(2, 3), 10).neighbours.shape == (3, 2)
