"""Fitting self-organizing maps in batch steps, measuring them, and pruning them."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from homework.core.devices import keeping_generators
from homework.datasets.features import FeatureDataset
from homework.tokenizers.base import usage_of
from homework.tokenizers.som import SOM
from homework.tokenizers.vector_quantizer import nearest


@torch.no_grad()
def fit_in_passes(model: SOM, data: FeatureDataset, order: Tensor, batch_size: int, passes: int,
                  advance: Callable[[int], object]) -> Iterator[dict[str, float]]:  # fmt: skip
    """Lays out the units over patches of ``data``, then makes ``passes`` batch steps, see :meth:`SOM.batch_step`, each over
    the maps at ``order`` (n); the radius shrinks from one to the next. Yields after each pass its "mse" per number, the
    "radius", and :func:`usage_of` the units; calls ``advance`` with the number of maps in each batch."""
    batches = order.split(batch_size)
    model.lay_out(torch.cat([_patches(model, data, indices) for indices in batches[:: -(-len(batches) // 16)]]))
    for i in range(passes):
        model.set_progress(i / max(1, passes - 1))
        total, error = (0, 0), torch.zeros((), device=model.device)
        for indices in batches:
            x = _patches(model, data, indices)
            best = nearest(x, model.codebook)
            total = tuple(a + b for a, b in zip(total, model.statistics(x, best), strict=True))
            error += (x - model.codebook[best]).square().sum()
            advance(len(indices))
        model.batch_step(*total)
        measures = {k: float(v) for k, v in usage_of(total[0], model.n_tokens).items()}
        yield measures | {"radius": model.radius, "mse": float(error / (total[0].sum() * model.codebook.shape[1]))}


def _patches(model: SOM, data: FeatureDataset, indices: Tensor) -> Tensor:  # (n,d) of the maps at ``indices``
    return model.to_patches(data.batch(indices, model.device)).flatten(0, 2)  # (B,h,w,d) -> (n,d)


@torch.no_grad()
def evaluate_codebook(model: SOM, data: FeatureDataset, batch_size: int,
                      topographic: bool = False) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
    """The number of patches in ``data`` that each unit is the best for (K), and "mse" and "quantization_error" as of
    :meth:`SOM.loss`, :func:`usage_of` the units and, with ``topographic``, which takes longer, "topographic_error"."""
    counts, sums = torch.zeros(model.n_tokens, device=model.device), torch.zeros(3, dtype=torch.float64)
    for indices in tqdm(torch.arange(len(data)).split(batch_size), "measuring", unit="batch"):
        x = _patches(model, data, indices)
        best, second = model.nearest_two(x) if topographic else 2 * (nearest(x, model.codebook),)
        squares = (x - model.codebook[best]).square().sum(dim=-1)
        counts += torch.bincount(best, minlength=model.n_tokens)
        parts = squares, squares.sqrt(), model.topographic_error(best, second)
        sums += torch.stack([part.float().sum().cpu() for part in parts])
    squares, distances, apart = (sums / counts.sum().item()).tolist()
    results = {"mse": squares / model.codebook.shape[1], "quantization_error": distances}
    results |= {"topographic_error": apart} if topographic else {}
    return counts, results | {k: float(v) for k, v in usage_of(counts, model.n_tokens).items()}


@keeping_generators()
def pruned(som: SOM, left: list[int]) -> SOM:
    """The SOM with the units ``left`` alone (rising), at their positions."""
    kept, state = [som.lattice.kept[i] for i in left], som.state_dict()
    config = som.config | {"n_codes": len(left), "kept": kept, "lattice": f"{som.lattice.rows}x{som.lattice.columns}"}
    smaller = SOM(**config).to(som.codebook.device)
    smaller.load_state_dict(state | {"codebook": state["codebook"][left]})
    return smaller.eval()
