"""PuzzleMix (arXiv 2009.06962): two images cut into blocks and put together so that what matters in both is kept.

For each image x with partner x', a mask z in {0, 1/2, 1} over n x n blocks minimises

    E(z) = sum_i z_i s'_i + (1 - z_i) s_i - eta / n^2 log p(z_i) + sum_ij beta_n (z_i - z_j)^2 + gamma beta_n phi_ij(z_i, z_j)

over blocks i and neighbours i, j: s and s' are the shares of saliency (of the loss's input gradient) in each block, p is
Binomial(2, lambda) / 2, phi the step between the pixels on both sides of the border. The mix is z x + (1 - z) x' and the
label lambda' y + (1 - lambda') y' with lambda' the mean of z. With `transport` blocks of salient pixels first move
under the mask, one assignment for each image.

What differs from the paper: z is the exact minimum, by one minimum cut for the whole batch (Ishikawa, PAMI 2003: a
convex cost of ordered labels), not alpha-beta swaps; lambda is drawn for each image, not for the batch; the saliency pass
leaves the running statistics of norms alone; the assignment is exact as well, on the mask's own blocks; neither
adversarial noise nor a clean loss beside the mixed one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import nn
from torch.nn import functional as F

from variegate.classifier.augment import Batch
from variegate.classifier.models import Classifier

NUM_BLOCKS = (2, 4, 8, 16)  # along an edge, one drawn for each batch
BETA, GAMMA, ETA = 1.2, 0.5, 0.2  # smooth label, smooth picture, prior; the paper's, with beta_n = BETA / (16 n)
TRANSPORT_COST = 0.8  # of moving a block by the whole picture, in shares of the saliency
LEVELS = torch.tensor([0.0, 0.5, 1.0])  # of z
_NEIGHBOURHOOD_PX = 4  # pixels are averaged over so many before borders are compared
_MAX_CAPACITY = 2**24  # integers of the cut: their sums stay below 2**31


@dataclass(frozen=True, slots=True)
class Energy:
    """E of a batch over masks of n x n blocks."""

    unary: torch.Tensor  # float [B, n, n, 3], a cost for each level of z
    down: torch.Tensor  # float [B, n - 1, n] >= 0, times (z_i - z_j)^2 of a block and the one below
    right: torch.Tensor  # float [B, n, n - 1] >= 0, likewise with the one to the right

    def of(self, mask: torch.Tensor) -> torch.Tensor:
        """E of masks in LEVELS [B, n, n]; float [B]."""
        level = (2 * mask).round().long()
        total = self.unary.gather(-1, level[..., None]).sum(dim=(1, 2, 3))
        total = total + (self.down * (mask[:, 1:] - mask[:, :-1]) ** 2).sum(dim=(1, 2))
        return total + (self.right * (mask[:, :, 1:] - mask[:, :, :-1]) ** 2).sum(dim=(1, 2))


def puzzle_mix(
    classifier: Classifier, images: torch.Tensor, targets: torch.Tensor, *, transport: bool, autocast: bool
) -> Batch:
    """Mix a batch with itself in another order; images float [B, 3, S, S] as the net takes them, targets [B, C].

    Randomness is torch's global generator.
    """
    edge = images.shape[-1]
    choices = [blocks for blocks in NUM_BLOCKS if edge % blocks == 0] or [1]
    blocks = choices[int(torch.randint(len(choices), ()))]
    other = torch.randperm(len(images)).to(images.device)
    share = torch.rand(len(images)).to(images.device)  # Beta(1, 1)
    salient = block_shares(saliency(classifier.net, images, targets, autocast=autocast), blocks)
    unscaled = images * images.new_tensor(classifier.std).view(1, 3, 1, 1)  # a step of 1 is from black to white
    energy = make_energy(salient, salient[other], unscaled, unscaled[other], share)
    mask = lowest(energy)
    first, second = images, images[other]
    if transport:
        first = moved(first, salient, mask)
        second = moved(second, salient[other], 1.0 - mask)
    cover = mask.repeat_interleave(edge // blocks, 1).repeat_interleave(edge // blocks, 2)[:, None]
    kept = mask.mean(dim=(1, 2))[:, None]
    return torch.lerp(second, first, cover), kept * targets + (1.0 - kept) * targets[other]


def saliency(net: nn.Module, images: torch.Tensor, targets: torch.Tensor, *, autocast: bool) -> torch.Tensor:
    """Length of the loss's gradient at every pixel, root mean square over channels; float [B, S, S].

    Weights take no gradient, and running statistics move in copies only.
    """
    state = {name: value.detach() for name, value in net.named_parameters()}
    state |= {name: value.clone() for name, value in net.named_buffers()}
    pixels = images.detach().requires_grad_(True)
    with torch.enable_grad():
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            logits = torch.func.functional_call(net, state, (pixels,))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), targets, reduction="sum"), pixels)
    return gradient.square().mean(dim=1).sqrt()


def block_shares(values: torch.Tensor, blocks: int) -> torch.Tensor:
    """Share of each block in the sum of a picture [B, S, S]; float [B, n, n], equal shares where all is 0."""
    pooled = F.avg_pool2d(values, values.shape[-1] // blocks) + 1e-12
    return pooled / pooled.sum(dim=(1, 2), keepdim=True)


def make_energy(
    salient: torch.Tensor, other: torch.Tensor, first: torch.Tensor, second: torch.Tensor, share: torch.Tensor
) -> Energy:
    """E for saliency shares [B, n, n] and pixels [B, 3, S, S] of both images, and lambda [B], the first one's share."""
    blocks = salient.shape[-1]
    smooth = BETA / (16 * blocks)
    prior = torch.stack([(1 - share) ** 2, 2 * share * (1 - share), share**2], dim=-1)  # of the LEVELS
    prior = -ETA / blocks**2 * (prior + 1e-8).log()
    levels = LEVELS.to(salient)
    unary = levels * other[..., None] + (1 - levels) * salient[..., None] + prior[:, None, None]
    down, unary = _borders(first, second, unary, smooth)
    right, turned = _borders(first.mT, second.mT, unary.transpose(1, 2), smooth)
    return Energy(turned.transpose(1, 2), down, right.mT)


def _borders(
    first: torch.Tensor, second: torch.Tensor, unary: torch.Tensor, smooth: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """phi between blocks and those below as weights of (z_i - z_j)^2 and additions to the unary costs.

    phi is bilinear in z with the four steps d[a][b] between a block of image a and one of image b at its corners, and
    2 z_i z_j = z_i + z_j - (z_i - z_j)^2 for z in {0, 1}. Weights are at least BETA (1 - GAMMA) / (16 n).
    """
    blocks = unary.shape[1]
    step = {(a, b): smooth * GAMMA * _steps(above, below, blocks)
            for a, above in ((1, first), (0, second)) for b, below in ((1, first), (0, second))}  # fmt: skip
    weight = smooth + (step[1, 0] + step[0, 1] - step[1, 1] - step[0, 0]) / 2
    levels, extra = LEVELS.to(unary), torch.zeros_like(unary)
    above = levels * (step[1, 1] + step[1, 0])[..., None] + (1 - levels) * (step[0, 0] + step[0, 1])[..., None]
    below = levels * (step[1, 1] + step[0, 1])[..., None] + (1 - levels) * (step[0, 0] + step[1, 0])[..., None]
    extra[:, :-1] += above / 2
    extra[:, 1:] += below / 2
    return weight, unary + extra


def _steps(above: torch.Tensor, below: torch.Tensor, blocks: int) -> torch.Tensor:
    """Mean difference of the pixels on both sides of the border between a block and the one below; [B, n - 1, n]."""
    size = above.shape[-1] // blocks
    pool = next(edge for edge in range(min(_NEIGHBOURHOOD_PX, size), 0, -1) if size % edge == 0)
    rows = size // pool
    over, under = F.avg_pool2d(above, pool), F.avg_pool2d(below, pool)
    edges = (over[:, :, rows - 1 : -1 : rows] - under[:, :, rows::rows]).abs().mean(dim=1)  # [B, n - 1, n * rows]
    return edges.unflatten(-1, (blocks, rows)).mean(dim=-1)


def lowest(energy: Energy) -> torch.Tensor:
    """The masks [B, n, n] of lowest energy, exactly, up to rounding to integers of 1 / 2^24 of the largest cost.

    A block has one node for z > 0 and one for z > 1/2, cut off the source where that is not so. With w / 4 for the
    weight, w (z_i - z_j)^2 = w / 4 (sum_ab |x_a - y_b| - [z_i = 1/2] - [z_j = 1/2]) over the nodes x of i and y of j.
    """
    quarters = [(energy.down / 4).cpu().numpy(), (energy.right / 4).cpu().numpy()]
    costs = energy.unary.cpu().double().numpy().copy()
    for axis, quarter in zip((1, 2), quarters, strict=True):
        before, after = [(0, 0)] * 3, [(0, 0)] * 3
        before[axis], after[axis] = (1, 0), (0, 1)
        costs[..., 1] -= np.pad(quarter, before) + np.pad(quarter, after)
    costs -= costs.min(axis=-1, keepdims=True)
    batch, blocks = costs.shape[:2]
    nodes = np.arange(costs[..., :2].size).reshape(batch, blocks, blocks, 2)
    on = _source_side(nodes, costs, quarters)
    return torch.from_numpy(on.reshape(nodes.shape).sum(axis=-1) / 2).to(energy.unary)


def _source_side(nodes: np.ndarray, costs: np.ndarray, quarters: list[np.ndarray]) -> np.ndarray:
    """Which nodes a minimum cut leaves with the source; bool [nodes]. All pictures are parts of one graph."""
    scale = _MAX_CAPACITY / max(costs.max(), *(quarter.max(initial=0.0) for quarter in quarters))
    source, sink, forbidden = nodes.size, nodes.size + 1, 8 * _MAX_CAPACITY
    edges = [
        (source, nodes[..., 0], costs[..., 0] * scale),
        (nodes[..., 0], nodes[..., 1], costs[..., 1] * scale),
        (nodes[..., 1], sink, costs[..., 2] * scale),
        (nodes[..., 1], nodes[..., 0], forbidden),
    ]
    pairs = ((nodes[:, :-1], nodes[:, 1:]), (nodes[:, :, :-1], nodes[:, :, 1:]))
    for (one, two), quarter in zip(pairs, quarters, strict=True):
        weight = (quarter * scale)[..., None, None]
        edges += [(one[..., :, None], two[..., None, :], weight), (two[..., None, :], one[..., :, None], weight)]
    start, end, capacity = (np.concatenate(column) for column in zip(*map(_flat, edges), strict=True))
    graph = coo_array((np.rint(capacity).astype(np.int32), (start, end)), shape=(sink + 1, sink + 1)).tocsr()
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.eliminate_zeros()
    reached = np.zeros(sink + 1, bool)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    return reached[: nodes.size]


def _flat(edge: tuple) -> list[np.ndarray]:
    return [column.ravel() for column in np.broadcast_arrays(*edge)]


def moved(images: torch.Tensor, salient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Blocks of each image moved under its mask [B, n, n]: the most saliency shown at the least distance, exactly."""
    blocks, edge = mask.shape[-1], images.shape[-1]
    places = torch.stack(torch.meshgrid(torch.arange(blocks), torch.arange(blocks), indexing="ij"), -1).flatten(0, 1)
    distance = torch.cdist(places.float(), places.float(), p=1) / (2 * max(blocks - 1, 1))  # [from, to] in [0, 1]
    cost = TRANSPORT_COST / blocks**2 * distance - (salient.flatten(1)[:, :, None] * mask.flatten(1)[:, None]).cpu()
    # The assignment gives each block its place; gathering needs the block of each place.
    taken = torch.from_numpy(np.stack([np.argsort(linear_sum_assignment(one)[1]) for one in cost.numpy()]))
    size = edge // blocks
    tiles = F.unfold(images, size, stride=size)  # [B, 3 * size^2, n^2]
    tiles = tiles.gather(2, taken.to(images.device)[:, None].expand_as(tiles))
    return F.fold(tiles, (edge, edge), size, stride=size).contiguous(memory_format=torch.channels_last)
