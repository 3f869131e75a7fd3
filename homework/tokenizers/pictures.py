"""Token grids as pictures, for TensorBoard."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from homework.core import checkpoint
from homework.core.fingerprint import is_of
from homework.tokenizers.base import Tokenizer, to_pictures
from homework.training.loop import shades_of_grey


def grid_decoder(path: str | Path, made_by: str | None, n_tokens: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """What turns token grids (n,h,w) into pictures (n,3,H,W) in [0,1]: a tokenizer if there is one, else shades of grey.

    Args:
        path: the tokenizer's checkpoint, which need not exist.
        made_by: the identity of the tokenizer that made the grids, if it is known; another one is not used.
        n_tokens: K; tokens are in [0, K).
        device: where the grids are.
    """
    path = checkpoint.locate(path)
    model = checkpoint.load(path).to(device) if path.is_file() else None
    if model and made_by and not is_of(made_by, model):
        tqdm.write(f"{path} did not make these tokens, so TensorBoard shows shades of grey; name the one that did as "
                   "--tokenizer.", sys.stderr)  # fmt: skip
    elif isinstance(model, Tokenizer) and model.n_tokens == n_tokens:
        return lambda grids: to_pictures(model.decode_index(grids))
    return shades_of_grey(path, made_by, n_tokens, device)
