"""PuzzleMix: the mask is the true minimum, labels follow its area, salient blocks are kept, the net is left alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from variegate.classifier import puzzle
from variegate.classifier.augment import own_randomness
from variegate.classifier.models import build_model
from variegate.classifier.puzzle import LEVELS, Energy


def pictures(count: int, edge: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(count, 3, generator=generator)
    return torch.randn(count, 3, edge, edge, generator=generator), targets / targets.sum(1, keepdim=True)


def random_energy(batch: int, blocks: int, seed: int, smooth: float) -> Energy:
    rand = torch.Generator().manual_seed(seed)
    unary = torch.randn(batch, blocks, blocks, 3, generator=rand)
    down, right = (
        torch.rand(batch, blocks - 1, blocks, generator=rand),
        torch.rand(batch, blocks, blocks - 1, generator=rand),
    )
    return Energy(unary, smooth * down, smooth * right)


def every_mask(blocks: int) -> torch.Tensor:
    return LEVELS[torch.tensor(list(itertools.product(range(3), repeat=blocks**2)))].view(-1, blocks, blocks)


def lowest_by_brute_force(energy: Energy, one: int, masks: torch.Tensor) -> torch.Tensor:
    alone = Energy(*(part[one : one + 1].expand(len(masks), *part.shape[1:]) for part in
                     (energy.unary, energy.down, energy.right)))  # fmt: skip
    return masks[alone.of(masks).argmin()]


@pytest.mark.parametrize(("blocks", "smooth"), [(2, 0.0), (2, 1.0), (3, 0.3), (3, 2.0)])
def test_the_mask_is_the_one_of_lowest_energy(blocks: int, smooth: float) -> None:
    energy, masks = random_energy(6, blocks, blocks, smooth), every_mask(blocks)
    found = puzzle.lowest(energy)
    for one in range(6):
        assert torch.equal(found[one], lowest_by_brute_force(energy, one, masks))
    assert len(found.unique()) > 1


def test_large_grids_are_cut_as_well_as_their_parts() -> None:
    """48 pictures of 16 x 16 blocks: no picture of the one graph touches another, and no integer runs over."""
    energy = random_energy(48, 16, 0, 0.4)
    found = puzzle.lowest(energy)
    alone = puzzle.lowest(Energy(energy.unary[7:8], energy.down[7:8], energy.right[7:8]))
    assert torch.equal(found[7:8], alone)
    lowest = energy.of(found)
    for seed in range(20):  # no change of single blocks is better
        other = found.clone()
        where = torch.rand(found.shape, generator=torch.Generator().manual_seed(seed)) < 0.02
        other[where] = LEVELS[torch.randint(3, (int(where.sum()),), generator=torch.Generator().manual_seed(seed))]
        assert (energy.of(other) >= lowest - 1e-4).all()


def test_the_energy_of_two_level_masks_is_the_papers() -> None:
    """Saliency lost, smooth labels, the step at each border between blocks, and the prior, up to a constant."""
    first, second = pictures(1, 8, seed=1)[0], pictures(1, 8, seed=2)[0]
    salient = puzzle.block_shares(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)), 2)
    other = puzzle.block_shares(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1)), 2)
    share = torch.tensor([0.3])
    energy = puzzle.make_energy(salient, other, first, second, share)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).view(-1, 1, 2, 2)
    smooth, prior = puzzle.BETA / 32, {0.0: 0.7**2, 1.0: 0.3**2}

    def paper(mask: torch.Tensor) -> float:
        total = float((mask * other[0] + (1 - mask) * salient[0]).sum())
        total -= sum(puzzle.ETA / 4 * float(torch.log(torch.tensor(prior[float(z)]))) for z in mask.flatten())
        sides = {1.0: first[0], 0.0: second[0]}
        for (y, x), (v, u) in [((0, 0), (1, 0)), ((0, 1), (1, 1)), ((0, 0), (0, 1)), ((1, 0), (1, 1))]:
            a, b = sides[float(mask[y, x])], sides[float(mask[v, u])]
            a, b = (
                block[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean(dim=(1, 2))
                for block, row, column in ((a, y, x), (b, v, u))
            )
            step = float((a - b).abs().mean())
            total += smooth * float((mask[y, x] - mask[v, u]) ** 2) + smooth * puzzle.GAMMA * step
        return total

    ours = torch.stack([energy.of(mask)[0] for mask in masks])
    theirs = torch.tensor([paper(mask[0]) for mask in masks])
    assert torch.allclose(ours - ours[0], theirs - theirs[0], atol=1e-5)
    assert (ours - ours[0]).abs().max() > 0.05


def test_salient_blocks_stay() -> None:
    salient, other = torch.full((1, 4, 4), 0.01), torch.full((1, 4, 4), 0.01)
    salient[0, 0, 0], other[0, 3, 3] = 0.85, 0.85
    plain = torch.zeros(1, 3, 16, 16)
    mask = puzzle.lowest(puzzle.make_energy(salient, other, plain, plain, torch.tensor([0.5])))
    assert mask[0, 0, 0] == 1.0
    assert mask[0, 3, 3] == 0.0


def test_a_block_hidden_by_the_mask_moves_to_where_it_shows() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3).expand(1, 3, 8, 8)
    salient = torch.full((1, 4, 4), 0.01)
    salient[0, 0, 0] = 0.85
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 1] = 1.0
    found = puzzle.moved(image, salient, mask)[0, 0, ::2, ::2]
    assert found[0, 1] == 0.0, "the salient block is where the mask shows it"
    assert found[0, 0] == 1.0, "and the one from there took the free place, the least way to go"
    assert sorted(found.flatten().tolist()) == list(range(16))
    assert torch.equal(puzzle.moved(image, salient, torch.ones(1, 4, 4)), image), "all shown: nothing moves"


@pytest.mark.parametrize("transport", [False, True])
@pytest.mark.parametrize("edge", [16, 18, 17])
def test_a_batch_is_mixed_and_labels_follow_the_area(edge: int, transport: bool) -> None:
    classifier = build_model("resnet-small", num_classes=3, size_px=edge, pretrained=False, seed=0)
    net = classifier.net.train()
    images = torch.stack([torch.full((3, edge, edge), float(value)) for value in range(8)])
    targets = torch.eye(3)[torch.arange(8) % 3]
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def mixed(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        with own_randomness(seed, torch.device("cpu")):
            return puzzle.puzzle_mix(classifier, images, targets, transport=transport, autocast=False)

    found, labels = mixed(3)
    again, other = mixed(3), mixed(4)
    assert torch.equal(found, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(found, other[0])
    assert torch.allclose(labels.sum(1), torch.ones(8))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()), "running statistics too"
    assert all(parameter.grad is None for parameter in net.parameters())
    with own_randomness(3, torch.device("cpu")):
        torch.randint(len([n for n in puzzle.NUM_BLOCKS if edge % n == 0] or [1]), ())
        partner = torch.randperm(8)
    values = torch.arange(8.0)
    for one in range(8):  # images of one grey each: the mean grey tells the area
        theirs = values[partner[one]]
        kept = 1.0 if theirs == one else float((found[one].mean() - theirs) / (one - theirs))
        assert torch.allclose(labels[one], kept * targets[one] + (1 - kept) * targets[partner[one]], atol=1e-4)


def test_saliency_is_the_gradients_length() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4, 2, bias=False))
    images, targets = pictures(5, 2)[0], torch.eye(2)[torch.tensor([0, 1, 0, 1, 1])]
    found = puzzle.saliency(net, images, targets, autocast=False)
    error = net(images).softmax(1) - targets
    expected = (error @ net[1].weight).view(5, 3, 2, 2).square().mean(1).sqrt()
    assert torch.allclose(found, expected, atol=1e-6)
