"""Self-organizing maps (Kohonen, Self-Organizing Maps, 2001) as tokenizers."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homework.core import checks
from homework.core.devices import keeping_generators
from homework.core.model import Model
from homework.core.registry import build_part
from homework.datasets.features import FeatureModel
from homework.nn.blocks import pad_to_patches, to_patches, unpatch
from homework.tokenizers.base import AutoEncoder, Tokenizer, figures_of_usage, to_pictures, usage
from homework.tokenizers.lattice import Lattice, neighbourhood, u_matrix
from homework.tokenizers.vector_quantizer import chunked_distances, nearest
from homework.training import distributed

MOST_CODES = 8192  # a neighbourhood has the square of this many weights
MOST_SCALES = 16  # of a residual codebook
SHEET = 1024  # pixels of a side of the codebook's picture, at most


def parse_patch(patch: int | str, height: int, width: int) -> tuple[int, int]:
    """The height and width of a patch: a side, "HEIGHTxWIDTH" or "map" for all of a ``height`` x ``width`` map. ValueError
    if it is none of these, or does not divide the map."""
    if patch == "map":
        return height, width
    if (own := checks.parse_sides(patch)) is None:
        raise ValueError(f"patch is {patch!r}, but must be an integer of at least 1, HEIGHTxWIDTH or map.")
    ph, pw = own
    if height % ph or width % pw:
        sides = ", ".join(str(side) for side in range(1, height + 1) if height % side == width % side == 0)
        raise ValueError(f"patch is {patch}, which does not divide the map of {height}x{width}; squares that do have sides "
                         f"of {sides}.")  # fmt: skip
    return ph, pw


def check_coarser(coarser: list[list] | None, height: int, width: int) -> list[tuple[int, int]]:
    """The patches of coarser codebooks, [n_codes, patch] of each. ValueError if they are something else."""
    if coarser is None:
        return []
    pairs = isinstance(coarser, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in coarser)
    if not pairs or not 1 <= len(coarser) <= MOST_SCALES:
        raise ValueError(f"coarser is {coarser!r}, but must be a list of 1 to {MOST_SCALES} [n_codes, patch], or None.")
    for n, _ in coarser:
        checks.integer(1, MOST_CODES, **{"n_codes of coarser": n})
    return [parse_patch(patch, height, width) for _, patch in coarser]


def cut(z: Tensor, patch: tuple[int, int]) -> Tensor:
    """Features (...,h*P,w*Q,C) -> (...,h,w,P*Q*C). ValueError if the patch does not divide the map."""
    (H, W), (ph, pw) = z.shape[-3:-1], patch
    if H % ph or W % pw:
        raise ValueError(f"The features are {H}x{W}, which patches of {ph}x{pw} do not divide.")
    return to_patches(z, ph, pw)


def build_autoencoder(spec: dict) -> AutoEncoder:
    """The frozen auto-encoder {"model": name, "config": {...}}. ValueError if ``spec`` is something else."""
    model = build_part("autoencoder", spec, "ConvAutoEncoder")
    if not isinstance(model, AutoEncoder) or isinstance(model, Tokenizer):
        raise ValueError(f"autoencoder is {spec!r}, but {checks.article(spec['model'])} is not an auto-encoder of images.")
    return model.requires_grad_(False)


class SOM(FeatureModel, Tokenizer):
    """A tokenizer: patches of an auto-encoder's feature map, each replaced by the nearest of a map's units.

    ::

        x (...,H,W,3) -> auto-encoder -> features (...,h*P,w*P,C) -> patches (...,h,w,P*P*C) -> best unit -> index (...,h,w)
        index -> units' vectors -> features -> auto-encoder -> x_hat

    Units have positions on a lattice, and a patch moves its best unit and that one's neighbours, so that near units come to
    have similar vectors. It is trained on features (``python -m homework.features``): by gradient, where a step of Kohonen's
    rule is a step along the gradient of sum_k h(k, b(x)) |x - w_k|^2 with the best unit b(x) held fixed; or, by
    ``python -m homework.som fit``, in batch steps, which put every w_k at once where that gradient is zero. The radius of
    the neighbourhood h shrinks exponentially.

    With ``coarser`` it is residual: its units stand for what coarser codebooks together leave of the features (Tian et al.,
    arXiv 2404.02905, section 3.2, here without interpolation: a unit covers its patch)::

        z -> coarsest codebook -> its vectors z_0 -> next one, of z - z_0 -> z_1 -> ... -> own one, of z - z_0 - z_1 - ...

    It bears those codebooks, so that it makes its tokens by itself; but only all grids together make an image
    (:meth:`decode_grids`). In place of unknown coarser grids ``decode`` takes their units' mean.

    Args:
        n_codes: K, units, from 1 to 8192.
        patch: P, the side of a patch in positions of the feature map; or "HEIGHTxWIDTH"; or "map", all of it.
        height, width: of the feature map.
        radius_start, radius_end: the neighbourhood's first and last radius in steps of the lattice; the first one is half of
            the longer side if 0.
        autoencoder: {"model": name, "config": {...}} of the auto-encoder; its weights come with :meth:`set_autoencoder`.
        lattice, kept: see :class:`homework.tokenizers.lattice.Lattice`.
        coarser: [n_codes, patch] of each coarser codebook, the coarsest first; their units come with :meth:`finer`.
    """

    architecture = "SOM 1"
    training_options = frozenset({"radius_start", "radius_end"})
    learning_rate = 5e-3
    autoencoder: AutoEncoder
    placed: Tensor
    positions: Tensor

    def __init__(self, n_codes: int = 1024, patch: int | str = 1, lattice: str = "plane", height: int = 20, width: int = 30,
                 radius_start: float = 0.0, radius_end: float = 1.0, autoencoder: dict | None = None,
                 kept: list[int] | None = None, coarser: list[list] | None = None):  # fmt: skip
        super().__init__()
        checks.integer(1, MOST_CODES, n_codes=n_codes)
        checks.integer(1, 4096, height=height, width=width)
        checks.positive(radius_end=radius_end)
        if type(radius_start) not in (int, float) or (radius_start != 0 and not radius_end <= radius_start < math.inf):
            raise ValueError(f"radius_start is {radius_start!r}, but must be 0, for half of the lattice, or a number of at "
                             f"least radius_end, which is {radius_end}.")  # fmt: skip
        self.n_tokens, self.lattice = n_codes, Lattice(lattice, n_codes, kept)
        self.patch = parse_patch(patch, height, width)
        half = max(self.lattice.rows, self.lattice.columns) / 2
        self.radius = self.radius_start = radius_start or max(1.0, half, radius_end)
        self.radius_end = radius_end
        if autoencoder is None:
            self.config["autoencoder"] = {"model": "ConvAutoEncoder", "config": {}}
        self.autoencoder = build_autoencoder(self.config["autoencoder"])
        side = self.autoencoder.stride
        with torch.no_grad():
            C = self.autoencoder.encode(torch.zeros(side, side, 3)).shape[-1]
        self.patch_size = (self.patch[0] * side, self.patch[1] * side)
        if patch != "map" and not coarser:
            halos = self.autoencoder.encoder_halo, self.autoencoder.decoder_halo
            self.encoder_halo, self.decoder_halo = (halo and -(-halo // min(self.patch)) for halo in halos)
        self.codebook = nn.Parameter(torch.randn(n_codes, math.prod(self.patch) * C) * 0.1)
        self.coarser_patches = check_coarser(coarser, height, width)
        self.n_coarser, self.one_for_all = len(self.coarser_patches), "map" in (patch, *(p for _, p in coarser or ()))
        for j, (n, sides) in enumerate(zip((n for n, _ in coarser or ()), self.coarser_patches, strict=True)):
            self.register_buffer(f"coarser_{j}", torch.zeros(n, math.prod(sides) * C))
        self.register_buffer("placed", torch.zeros((), dtype=torch.bool))  # whether the units have been laid out over data
        self.register_buffer("positions", self.lattice.positions, persistent=False)
        self.first: list[Tensor] = []  # patches to lay them out over

    def set_autoencoder(self, model: Model) -> None:
        """Copies the weights of the auto-encoder that made the features. ValueError if it is of another kind."""
        own, spec = self.autoencoder, {"model": type(model).__name__, "config": model.config}
        if (type(own), own.config) != (type(model), model.config):  # the spec may be older than some options
            raise ValueError(f"This SOM is for {self.config['autoencoder']}, but the features were made by {spec}; train a "
                             "new one on them.")  # fmt: skip
        self.autoencoder.load_state_dict(model.state_dict())

    @keeping_generators()
    def finer(self, **options: Any) -> "SOM":
        """A new SOM of what this one, and all that are coarser, leave of the same features; ``options`` as of the
        constructor."""
        coarser = [*(self.config["coarser"] or []), [self.n_tokens, self.config["patch"]]]
        shared = {name: self.config[name] for name in ("height", "width", "autoencoder")}
        model = SOM(**shared | options, coarser=coarser)
        model.autoencoder.load_state_dict(self.autoencoder.state_dict())
        with torch.no_grad():
            for (codebook, _), (own, _) in zip(model.scales, self.scales, strict=False):
                codebook.copy_(own)
        return model

    @keeping_generators()
    def coarser_codebook(self, j: int) -> "SOM":
        """Codebook ``j`` of the coarser ones that this one bears, as a SOM of its own, on a plane without gaps: what
        :meth:`finer` began with."""
        n_codes, patch = self.config["coarser"][j]
        shared = {name: self.config[name] for name in ("height", "width", "autoencoder")}
        model = SOM(n_codes, patch, **shared, coarser=self.config["coarser"][:j] or None)
        model.autoencoder.load_state_dict(self.autoencoder.state_dict())
        with torch.no_grad():
            for (codebook, _), (own, _) in zip(model.scales, self.scales, strict=False):
                codebook.copy_(own)
            model.placed.fill_(True)
        return model.eval()

    @property
    def scales(self) -> list[tuple[Tensor, tuple[int, int]]]:
        """The units (K,d) and the patch of each codebook, the coarsest first, its own last."""
        coarser = [(self.get_buffer(f"coarser_{j}"), patch) for j, patch in enumerate(self.coarser_patches)]
        return [*coarser, (self.codebook, self.patch)]

    def follows(self, before: Tokenizer | None) -> bool:
        """Whether ``before`` is the codebook on whose residuals this one was fitted, up to float16. A SOM that is not
        residual follows any."""
        if not self.n_coarser:
            return True
        own = {f"scale {j}": codebook for j, (codebook, _) in enumerate(self.scales[:-1])} | self.autoencoder.state_dict()
        if not isinstance(before, SOM) or [p for _, p in before.scales] != self.coarser_patches:
            return False
        other = {f"scale {j}": codebook for j, (codebook, _) in enumerate(before.scales)} | before.autoencoder.state_dict()
        return own.keys() == other.keys() and all(torch.equal(own[k].half(), other[k].half()) for k in own)

    def kept_by_coarser(self, z: Tensor) -> Tensor:
        """Features (...,H,W,C) -> what the coarser codebooks together keep of them, (...,H,W,C): each quantizes what those
        before it leave (Lee et al., arXiv 2203.01941, equation 3). ValueError if a patch does not divide the map."""
        kept = torch.zeros_like(z)
        for codebook, patch in self.scales[:-1]:
            kept = kept + unpatch(codebook[nearest(cut(z - kept, patch), codebook)], *patch)
        return kept

    def to_patches(self, z: Tensor) -> Tensor:
        """(...,h*P,w*P,C) features -> (...,h,w,P*P*C), what coarser codebooks leave of them. ValueError if the patch does
        not divide the map."""
        return cut(z - self.kept_by_coarser(z) if self.n_coarser else z, self.patch)

    def sum_of(self, grids: Sequence[Tensor]) -> Tensor:
        """Grids (...,h,w) of the first codebooks, the coarsest first -> the sum of their vectors as features (...,H,W,C).
        ValueError for grids of other sizes, or with codes that a codebook does not have."""
        scales = list(zip(self.scales, grids, strict=False))
        sizes = {(grid.shape[-2] * patch[0], grid.shape[-1] * patch[1]) for (_, patch), grid in scales}
        if len(sizes) > 1 or any(int(grid.max()) >= len(codebook) for (codebook, _), grid in scales):
            raise ValueError("The grids are not of one image, or not of the codebooks of this SOM; give those of all "
                             "coarser codebooks, the coarsest first.")  # fmt: skip
        return torch.stack([unpatch(codebook[grid.long()], *patch) for (codebook, patch), grid in scales]).sum(dim=0)

    def context(self, grids: Sequence[Tensor]) -> Tensor:
        return cut(self.sum_of(grids), self.patch)

    def decode_grids(self, grids: Sequence[Tensor]) -> Tensor:
        return self.autoencoder.decode(self.sum_of(grids)) if self.n_coarser else self.decode_index(grids[-1])

    def to_features(self, code: Tensor) -> Tensor:
        """(...,h,w,P*P*C) -> (...,h*P,w*P,C)."""
        return unpatch(code, *self.patch)

    def features(self, x: Tensor) -> Tensor:
        """(...,H,W,3) float in [-0.5,0.5], edge-padded to complete patches -> its features (...,h*P,w*P,C). ValueError for
        an image larger than the map, if that is one patch, of this codebook or of a coarser one."""
        (H, W), side = x.shape[-3:-1], self.autoencoder.stride
        most = self.config["height"] * side, self.config["width"] * side
        if self.one_for_all and (H > most[0] or W > most[1]):
            size = "x".join(map(str, most))
            raise ValueError(f"The images are {H}x{W}, but this SOM has one code for images of up to {size}; use "
                             f"--image_size {size}.")  # fmt: skip
        return self.autoencoder.encode(pad_to_patches(x, *self.patch_shape))

    def latent(self, x: Tensor) -> Tensor:
        """(...,H,W,3) float in [-0.5,0.5] -> :meth:`to_patches` of its :meth:`features`, (...,h,w,P*P*C)."""
        return self.to_patches(self.features(x))

    def encode_index(self, x: Tensor) -> Tensor:
        return nearest(self.latent(x), self.codebook)

    def encode_features(self, z: Tensor) -> Tensor:
        return nearest(self.to_patches(z), self.codebook)

    def code_vectors(self, index: Tensor) -> Tensor:
        return self.codebook[index.long()]

    def code_layout(self) -> Tensor:
        """(rows,columns) int64: the units on the lattice; -1 where there is none."""
        return self.lattice.on_sheet(torch.arange(self.n_tokens), -1)

    def decode(self, code: Tensor) -> Tensor:
        """(...,h,w,d) -> (...,H,W,3): complete patches. ValueError for several codes where one is for the entire map."""
        if self.config["patch"] == "map":
            self.check_single(code)
        C = self.codebook.shape[1] // math.prod(self.patch)
        unknown = [codebook.unflatten(1, (-1, C)).mean(dim=(0, 1)) for codebook, _ in self.scales[:-1]]  # (C) each
        return self.autoencoder.decode(sum(unknown, self.to_features(code)))

    def reconstruct(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features (...,h*P,w*P,C) -> images (...,H,W,3), decoded from this codebook's vectors and all coarser ones', and
        this one's codes (...,h,w)."""
        kept = self.kept_by_coarser(z) if self.n_coarser else None
        index = nearest(cut(z if kept is None else z - kept, self.patch), self.codebook)
        own = self.to_features(self.code_vectors(index))
        return self.autoencoder.decode(own if kept is None else own + kept), index

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x_hat, index = self.reconstruct(self.features(x))
        return x_hat[..., : x.shape[-3], : x.shape[-2], :], usage(index, self.n_tokens)

    def statistics(self, x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
        """Of patches x (n,d) and their best units (n): how many patches each unit has (K), and their sums (K,d). A step
        needs no more: the neighbourhood acts on units, not on patches."""
        counts = torch.bincount(best, minlength=self.n_tokens).to(x.dtype)
        return counts, x.new_zeros(self.codebook.shape).index_add_(0, best, x)

    def nearest_two(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The best and the second best unit (n), (n) of patches (n,d); the same one twice if there is only one."""
        n, distances = min(2, self.n_tokens), chunked_distances(x, self.codebook)
        two = torch.cat([d.topk(n, largest=False).indices for d in distances])  # (rows,K) -> (rows,2)
        return two[:, 0], two[:, -1]

    def topographic_error(self, best: Tensor, second: Tensor) -> Tensor:
        """(n), (n) units -> (n) bool: whether the second is not beside the best one on the lattice."""
        return (self.positions[best] - self.positions[second]).square().sum(dim=-1) > 2

    def loss(self, z: Tensor) -> dict[str, Tensor]:
        """Of features (B,h*P,w*P,C): "loss", the neighbourhood-weighted squared error sum_k h(k, b(x)) |x - w_k|^2, per
        number of a patch; "mse" per number; "quantization_error", the mean distance |x - w_b|; "topographic_error", the
        fraction of patches whose second best unit is not beside the best one (Kiviluoto 1996); "radius"; and
        :func:`homework.tokenizers.base.usage`."""
        x = self.to_patches(z).flatten(0, 2)  # (B,h,w,d) -> (n,d)
        if self.training and not self.placed:
            self.first.append(x)
        with torch.no_grad():
            best, second = self.nearest_two(x)
            distances = (x - self.codebook[best]).square().sum(dim=-1)
        counts, sums = self.statistics(x, best)
        squares = x.new_zeros(self.n_tokens).index_add_(0, best, x.square().sum(dim=-1))
        h, w = neighbourhood(self.positions, self.radius), self.codebook
        # sum_x sum_k h(k,b) |x - w_k|^2, with the patches of each best unit added up
        error = (h @ squares).sum() - 2 * (w * (h @ sums)).sum() + ((h @ counts) * w.square().sum(dim=-1)).sum()
        measures = {"loss": error / x.numel(), "mse": distances.mean() / x.shape[1]}
        measures["quantization_error"] = distances.sqrt().mean()
        measures["topographic_error"] = self.topographic_error(best, second).float().mean()
        measures |= {"radius": torch.tensor(self.radius), **usage(best, self.n_tokens)}
        return measures if self.training else measures | {"tokens": best}

    def figures(self, means: dict[str, float], counts: Tensor) -> dict[str, float]:
        """With :func:`usage` over all tokens."""
        return means | figures_of_usage(counts, self.n_tokens)

    def set_progress(self, f: float) -> None:
        self.radius = self.radius_start * (self.radius_end / self.radius_start) ** f

    @torch.no_grad()
    def after_update(self) -> None:
        """Lays out the units over the patches of the first update, of all processes."""
        if not self.placed and self.first:
            self.lay_out(distributed.collect(self.first))
            self.first = []
            distributed.share(self)  # the same bits on every machine

    @torch.no_grad()
    def lay_out(self, x: Tensor) -> None:
        """Puts the units on the lattice whose sides follow the two main axes of patches (n,d), which is near to the result
        of a training (Kohonen 2001, section 3.7: linear initialization)."""
        x = x[:: max(1, len(x) // 2048)].float()
        mean = x.mean(dim=0)
        _, s, axes = torch.linalg.svd(x - mean, full_matrices=False)  # (r), (r,d)
        spread = 2 * s[:2] / len(x) ** 0.5  # two standard deviations along each
        positions = self.lattice.scaled().to(x.device)
        if self.lattice.rows < self.lattice.columns:
            positions = positions.flip(-1)  # the longer side along the first axis
        self.codebook.copy_(mean + (positions[:, : len(spread)] * spread) @ axes[: len(spread)])
        self.placed.fill_(True)

    @torch.no_grad()
    def batch_step(self, counts: Tensor, sums: Tensor) -> None:
        """Kohonen's batch step (2001, section 3.6): w_k = sum_j h(k,j) sums_j / sum_j h(k,j) counts_j, from the
        :meth:`statistics` of all patches. Units that nothing reaches stay."""
        h = neighbourhood(self.positions, self.radius)
        weight = (h @ counts)[:, None]
        self.codebook.copy_(torch.where(weight > 1e-12, h @ sums / weight.clamp_min(1e-12), self.codebook))

    @torch.no_grad()
    def images(self, z: Tensor) -> dict[str, Tensor]:
        """Features (B,h*P,w*P,C) -> {"features", "reconstruction"}, decoded from them and from their codes: (B,3,H,W) in
        [0,1]; "codebook" and "u_matrix", (1,3,...) in [0,1], of the lattice."""
        decoded = {"features": self.autoencoder.decode(z), "reconstruction": self.reconstruct(z)[0]}
        maps = {"codebook": self.codebook_picture()[None], "u_matrix": self.u_matrix_picture()[None]}
        return {name: to_pictures(x) for name, x in decoded.items()} | maps

    def units_on_sheet(self) -> Tensor:
        """(R,S) int64: the unit at each position of the lattice, -1 where there is none; of every second (third, ...) row
        and column only, if their picture would be larger than SHEET pixels."""
        ph, pw = self.patch_shape
        down, right = -(-self.lattice.rows * ph // SHEET), -(-self.lattice.columns * pw // SHEET)
        return self.code_layout().to(self.device)[::down, ::right]

    def codebook_picture(self) -> Tensor:
        """(3,R*P,S*Q) in [0,1]: each of :meth:`units_on_sheet` decoded by itself."""
        (ph, pw), units = self.patch_shape, self.units_on_sheet()
        there = units >= 0
        tiles = self.codebook.new_full((*units.shape, ph, pw, 3), 1.0)
        tiles[there] = (self.decode_index(units[there][:, None, None]) + 0.5).clamp(0, 1)  # (n,1,1) -> (n,ph,pw,3)
        return unpatch(tiles.flatten(2), ph, pw).permute(2, 0, 1)  # (R,S,ph,pw,3) -> (3,R*ph,S*pw)

    def u_matrix_picture(self) -> Tensor:
        """(3,rows,columns) in [0,1]: each unit's mean distance from its neighbours, as grey; black where there is none."""
        distances = self.lattice.on_sheet(u_matrix(self.codebook, self.positions))
        return (distances / distances.max().clamp_min(1e-12)).repeat(3, 1, 1)
