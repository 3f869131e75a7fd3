"""Batch steps and pruning of self-organizing maps."""

import torch
from torch import Tensor

from homework.datasets.features import FeatureDataset
from homework.tokenizers.som import SOM
from homework.tokenizers.vq import nearest


@torch.no_grad()
def evaluate_codebook(
    model: SOM, data: FeatureDataset, batch_size: int, device: torch.device, topographic: bool = False
) -> tuple[Tensor, dict[str, float]]:
    """How many of the patches in ``data`` each unit stands for (K), and "mse" and "quantization_error" as of
    :meth:`SOM.loss`; with ``topographic``, which takes longer, also "topographic_error"."""
    counts, sums = torch.zeros(model.n_tokens, device=device), torch.zeros(3, dtype=torch.float64)
    for indices in torch.arange(len(data)).split(batch_size):
        x = model.to_patches(data.batch(indices, device)).flatten(0, 2)  # (B,h,w,d) -> (n,d)
        best, second = model.nearest_two(x) if topographic else 2 * (nearest(x, model.codebook),)
        squares = (x - model.codebook[best]).square().sum(dim=-1)
        counts += torch.bincount(best, minlength=model.n_tokens)
        parts = squares, squares.sqrt(), model.topographic_error(best, second)
        sums += torch.stack([part.float().sum().cpu() for part in parts])
    squares, distances, astray = (sums / counts.sum().item()).tolist()
    figures = {"mse": squares / model.codebook.shape[1], "quantization_error": distances}
    return counts, figures | ({"topographic_error": astray} if topographic else {})


def pruned(som: SOM, left: list[int]) -> SOM:
    """The SOM that has the units ``left`` alone (rising), where they stand."""
    kept = [som.lattice.kept[i] for i in left]
    config = som.config | {"n_codes": len(left), "kept": kept, "lattice": som.lattice.name()}
    smaller = SOM(**config).to(som.codebook.device)
    state = som.state_dict()
    smaller.load_state_dict(state | {"codebook": state["codebook"][left]})
    return smaller.eval()
