"""Principal components of patches, and the encoder and decoder that start at them."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks
from homework.nn.blocks import Block, Conv, check_sizes, unpatch

PRIOR = 32  # patches of all kinds, for each number kept, that count with those of a kind: a rare kind stays near all
ROUNDS = 6  # of giving each kind its PCA, and each patch its kind
CHUNK = 2**13  # patches of which the errors under all kinds are in memory at a time


def patches(x: Tensor, P: int) -> Tensor:
    """(B,h*P,w*P,3) -> (B,h,w,P*P*3): the inverse of :func:`homework.nn.blocks.unpatch`."""
    x = x.unflatten(2, (-1, P)).unflatten(1, (-1, P))  # (B,h*P,w*P,3) -> (B,h,P,w,P,3)
    return x.transpose(2, 3).flatten(3)  # (B,h,P,w,P,3) -> (B,h,w,P*P*3)


def components(batches: Iterable[Tensor], n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of vectors in ``batches`` (m,d): the mean (d), the ``n`` orthonormal axes (d,n) along which they vary most, and the
    variance along each (n), largest first; float32 on the CPU, from sums in float64."""
    total, squares, count = torch.zeros(()), torch.zeros(()), 0
    for x in batches:
        total, squares, count = total + x.sum(dim=0).cpu().double(), squares + (x.T @ x).cpu().double(), count + len(x)
    mean = total / count
    variances, axes = torch.linalg.eigh(squares / count - mean.outer(mean))  # ascending
    return mean.float(), axes.flip(1)[:, :n].float(), variances.flip(0)[:n].clamp_min(0).float()


class PatchPCA(nn.Module):
    """PCA of patches, one for each of K kinds of them (local PCA: Kambhatla and Leen, Neural Computation 9, 1997).

    ::

        patch (d = 3*P*P) -> y (M), its leading components under the PCA of all patches
                          -> kind k, of which the PCA loses least of y -> z (n): n' coordinates in it and, if K > 1, k

    Its tensors are buffers, which come from :meth:`fit` and not from gradients; encoder and decoder share them.
    """

    mean: Tensor  # (d)
    axes: Tensor  # (d,M), orthonormal
    scale: Tensor  # (M), the unit of each component for networks
    centres: Tensor  # (K,M)
    bases: Tensor  # (K,M,n'), orthonormal

    def __init__(self, P: int, n: int, K: int):
        super().__init__()
        self.P, self.K, self.kept = P, K, n - (K > 1)
        d = 3 * P * P
        M = min(d, n if K == 1 else 5 * n // 2)
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("axes", nn.init.orthogonal_(torch.empty(d, M)))
        self.register_buffer("scale", torch.ones(M))
        self.register_buffer("centres", torch.zeros(K, M))
        self.register_buffer("bases", torch.eye(M, self.kept).repeat(K, 1, 1))

    def project(self, x: Tensor) -> Tensor:
        """Complete patches (B,h*P,w*P,3) -> y (B,h,w,M)."""
        return (patches(x, self.P) - self.mean) @ self.axes

    def pixels(self, y: Tensor) -> Tensor:
        """y (B,h,w,M) -> (B,h*P,w*P,3)."""
        return unpatch(y @ self.axes.T + self.mean, self.P)

    def encode(self, y: Tensor) -> Tensor:
        """y (...,M) -> z (...,n), the coordinates divided by ``scale``."""
        z, errors = self._all(y)
        k = errors.argmin(dim=-1, keepdim=True)
        z = z.take_along_dim(k[..., None], dim=-2).squeeze(-2) / self.unit  # (...,K,n') -> (...,n')
        return torch.cat([z, k.to(z.dtype)], dim=-1) if self.K > 1 else z

    def decode(self, z: Tensor) -> Tensor:
        """z (...,n) -> y (...,M)."""
        k = z[..., -1].round().long().clamp(0, self.K - 1) if self.K > 1 else torch.zeros_like(z[..., 0], dtype=torch.long)
        own = (z[..., : self.kept] * self.unit)[..., None, :] * F.one_hot(k, self.K)[..., None]  # (...,K,n'): 0 but for k
        return own.flatten(-2) @ self.bases.transpose(1, 2).flatten(0, 1) + self.centres[k]  # (...,K*n') -> (...,M)

    @property
    def unit(self) -> Tensor:
        """(n'); where there are more coordinates than components, 1 for those that stay 0."""
        return F.pad(self.scale, (0, max(0, self.kept - len(self.scale))), value=1.0)[: self.kept]

    def _all(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """y (...,M) -> its coordinates (...,K,n') under the PCA of each kind, and what each loses of it, squared (...,K)."""
        z = (y @ self.bases.transpose(0, 1).flatten(1)).unflatten(-1, (self.K, -1))  # (...,K*n') -> (...,K,n')
        z = z - torch.einsum("km,kmn->kn", self.centres, self.bases)
        distances = y.square().sum(dim=-1, keepdim=True) - 2 * y @ self.centres.T + self.centres.square().sum(dim=-1)
        return z, distances - z.square().sum(dim=-1)

    @torch.no_grad()
    def fit(self, images: Callable[[], Iterable[Tensor]]) -> None:
        """Sets its tensors by the batches (B,h*P,w*P,3) that every call of ``images`` gives again. The first kinds are equal
        shares of the patches, by how much the PCA of all of them loses."""
        mean, axes, variances = components((patches(x, self.P).flatten(0, 2) for x in images()), len(self.scale))
        self.mean.copy_(mean)
        self.axes.copy_(axes)
        self.scale.copy_(variances.sqrt().sqrt().clamp_min(1e-3))  # between raw, where networks hardly see the last ones,
        if self.K == 1:  # and the standard deviation, with which every update would shake the first ones
            return
        y = torch.cat([self.project(x).flatten(0, 2) for x in images()])  # (B,h,w,M) -> (m,M)
        kind = y[:, self.kept :].square().sum(dim=1).argsort().argsort() * self.K // len(y)
        for _ in range(ROUNDS):
            for k in range(self.K):
                self._fit_kind(k, y[kind == k], variances.to(y))
            kind = torch.cat([self._all(some)[1].argmin(dim=1) for some in y.split(CHUNK)])

    def _fit_kind(self, k: int, y: Tensor, variances: Tensor) -> None:
        """Makes the PCA of kind k that of the vectors (m,M) and of others with the mean 0 and those ``variances``."""
        others = PRIOR * self.kept
        m = len(y) + others
        self.centres[k] = mean = y.sum(dim=0) / m
        covariance = (y.T @ y + others * variances.diag()) / m - mean.outer(mean)
        basis = torch.linalg.eigh(covariance.cpu().double()).eigenvectors.flip(1)[:, : self.kept]
        self.bases[k, :, : basis.shape[1]] = basis.float()


class PCAEncoder(nn.Module):
    """(B,h*P,w*P,3) -> z (B,h,w,n) of a :class:`PatchPCA`. To its coordinates blocks add, which see more components and the
    patches around; at first nothing. The kind of a patch stays as it is."""

    def __init__(self, pca: PatchPCA, D: int, n_blocks: int):
        super().__init__()
        self.pca = pca
        self.inp = nn.Linear(len(pca.scale), D)
        self.blocks = nn.Sequential(*(Block(D) for _ in range(n_blocks)), nn.LayerNorm(D))
        self.out = zeroed(nn.Linear(D, pca.kept))

    def forward(self, x: Tensor) -> Tensor:
        y = self.pca.project(x)
        z = self.out(self.blocks(self.inp(y / self.pca.scale)))
        return self.pca.encode(y) + F.pad(z, (0, int(self.pca.K > 1)))


class PCADecoder(nn.Module):
    """z (B,h,w,n) -> (B,h*P,w*P,3) of a :class:`PatchPCA`. To its components blocks add, which see the patches around, and
    to its pixels small convolutions, through ``detail`` channels, which see across the seams; at first nothing."""

    def __init__(self, pca: PatchPCA, D: int, n_blocks: int, detail: int):
        super().__init__()
        self.shared, M = [pca], len(pca.scale)  # in a list, as the encoder has its tensors: once in a checkpoint is enough
        self.inp = nn.Linear(M, D)
        self.blocks = nn.Sequential(*(Block(D) for _ in range(n_blocks)), nn.LayerNorm(D))
        self.out = zeroed(nn.Linear(D, M))
        self.mend = nn.Sequential(Conv(3, detail, 3, padding=1), nn.GELU(), zeroed(Conv(detail, 3, 3, padding=1)))

    def forward(self, z: Tensor) -> Tensor:
        (pca,) = self.shared
        y = pca.decode(z)
        x = pca.pixels(y + pca.scale * self.out(self.blocks(self.inp(y / pca.scale))))
        return x + self.mend(x)


def zeroed(layer: nn.Module) -> nn.Module:
    """The ``layer``, all its weights and biases zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def pca_networks(patch_size: int, latent_dim: int, bottleneck: int, encoder_blocks: int, decoder_blocks: int, detail: int,
                 K: int) -> tuple[PCAEncoder, PCADecoder]:  # fmt: skip
    """As :func:`homework.nn.blocks.patch_networks`, around PCAs of K kinds of patches."""
    check_sizes(patch_size, latent_dim, encoder_blocks, decoder_blocks, detail)
    checks.integer(1 if K == 1 else 2, 4096, bottleneck=bottleneck)  # the kind is one of its numbers
    pca = PatchPCA(patch_size, bottleneck, K)
    return PCAEncoder(pca, latent_dim, encoder_blocks), PCADecoder(pca, latent_dim, decoder_blocks, detail)
