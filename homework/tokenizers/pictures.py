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


def grid_decoder(path: str | Path, made_by: str | None, n_tokens: int,
                 device: torch.device) -> Callable[[Tensor], Tensor] | None:  # fmt: skip
    """What turns token grids (n,h,w) on ``device`` into pictures (n,3,H,W) in [0,1]: the tokenizer in the checkpoint
    ``path``. None if there is none, or not the one they were ``made_by`` (its identity, or None if that is not known)."""
    path = checkpoint.locate(path)
    model = checkpoint.load(path).to(device) if path.is_file() else None
    if model and made_by and not is_of(made_by, model):
        tqdm.write(f"{path} did not make these tokens, so TensorBoard shows shades of grey; name the one that did as "
                   "--tokenizer.", sys.stderr)  # fmt: skip
    elif isinstance(model, Tokenizer) and model.n_tokens == n_tokens:
        return lambda grids: to_pictures(model.decode_index(grids))
    return None
