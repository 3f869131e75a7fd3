"""How far two sets of feature vectors are from each other, and which vectors of one are near to the other. Knows no models
and no images; rows of (n,D) float are vectors of D features."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 2**24  # distances or kernel values that are in memory at once
K_NEAREST = 3  # neighbours that make a ball, as in Kynkaanniemi et al.'s experiments
NEAR = 0.05  # the share of reference vectors that are called near to a training vector


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """The Frechet distance of two Gaussians with the means m and covariances C of two sets, |m1 - m2|^2 + tr(C1 + C2 -
    2 (C1 C2)^(1/2)), in squared units of the features (Heusel et al., arXiv 1706.08500, equation 6). It falls with the
    number of vectors (Chong and Forsyth, arXiv 1911.07023): compare values of equal numbers only.

    (n,D), (m,D) -> at least 0; n and m of at least 2, and as few as that, whatever D is.
    """
    x, y = x.double(), y.double()
    # R of the QR decomposition of centred vectors: C = R^T R, and tr (C1 C2)^(1/2) is the sum of R1 R2^T's singular values
    r, s = (torch.linalg.qr((z - z.mean(dim=0)) / (len(z) - 1) ** 0.5, mode="r").R for z in (x, y))
    spread = r.square().sum() + s.square().sum() - 2 * torch.linalg.svdvals(r @ s.mT).sum()
    return max(0.0, ((x.mean(dim=0) - y.mean(dim=0)).square().sum() + spread).item())


def kernel_distance(x: Tensor, y: Tensor) -> tuple[float, float]:
    """The squared maximum mean discrepancy of two sets for the kernel k(a,b) = (a.b / D + 1)^3, estimated without bias from
    all pairs (Binkowski et al., arXiv 1801.01401, equation 4): it may be negative, and its mean is 0 for two sets of one
    distribution. With it its standard error, if all vectors are independent: that of the U-statistic's first-order terms
    (Sutherland et al., arXiv 1611.04488, equation 5), which is too large rather than too small near 0.

    (n,D), (m,D) -> (distance, standard error); n and m of at least 2.
    """
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    a = (kernel_sums(x, x) - kernel(x, x)) / (n - 1) - kernel_sums(x, y) / m  # (n): a vector's own part of the distance
    b = (kernel_sums(y, y) - kernel(y, y)) / (m - 1) - kernel_sums(y, x) / n  # (m)
    return (a.mean() + b.mean()).item(), 2 * (a.var() / n + b.var() / m).sqrt().item()


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n,D) twice -> (n): of each vector and the one beside it."""
    return ((x * y).sum(dim=-1) / x.shape[-1] + 1) ** 3


def kernel_sums(x: Tensor, y: Tensor) -> Tensor:
    """(n,D), (m,D) -> (n): over all y."""
    return torch.cat([(some @ y.T / x.shape[-1] + 1).pow(3).sum(dim=-1) for some in blocks(x, y)])


def precision_recall(samples: Tensor, reference: Tensor, k: int = K_NEAREST) -> tuple[float, float]:
    """Improved precision, the share of samples that lie on the manifold of the reference, and recall, the converse
    (Kynkaanniemi et al., arXiv 1904.06991, section 2): a manifold is all balls around the vectors of a set that reach to
    their k-th nearest neighbour in it. (n,D), (m,D), n and m above k -> both from 0 to 1."""
    return share_within(samples, reference, k), share_within(reference, samples, k)


def share_within(x: Tensor, y: Tensor, k: int) -> float:
    """The share of vectors x (n,D) that are in a ball around any of y (m,D)."""

    def distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:  # without products, so that those of equal vectors are 0
        return (torch.cdist(some, y, compute_mode="donot_use_mm_for_euclid_dist") for some in blocks(x, y))

    radii = torch.cat([d.topk(k + 1, largest=False).values[:, -1] for d in distances(y, y)])  # the nearest is itself
    return torch.cat([(d <= radii).any(dim=-1) for d in distances(x, y)]).double().mean().item()


def nearest(x: Tensor, y: Tensor) -> Tensor:
    """(n,D), (m,D) -> (n) float64: the Euclidean distance of each x from the nearest y, up to about 1e-6 for equal ones."""
    x, y = x.double(), y.double()
    return torch.cat([torch.cdist(some, y).amin(dim=-1) for some in blocks(x, y)])


def memorized(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Whether samples are nearer to training vectors than reference vectors are, which the training has not seen. Of the
    distances of both, (n) and (m), from the nearest: the "median" and the "reference_median", and "share_near", the share
    of samples that are nearer than the nearest NEAR of the reference: NEAR if they are alike, more if training vectors were
    learned by heart."""
    share = (samples < reference.quantile(NEAR)).double().mean().item()
    return {"median": samples.median().item(), "reference_median": reference.median().item(), "share_near": share}


def blocks(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """x, so much at a time that a value for each pair with y needs not much memory."""
    return x.split(max(1, BLOCK // len(y)))
