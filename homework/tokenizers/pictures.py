"""Token grids as pictures, for TensorBoard."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from homework.core import checkpoint, checks
from homework.core.fingerprint import is_of
from homework.core.model import Model
from homework.core.processes import say
from homework.tokenizers.base import Tokenizer, to_pictures


def grid_decoder(path: str | Path, made_by: str | None, n_tokens: int, grids: Tensor,
                 required: bool = False) -> Callable[[Tensor], Tensor] | None:  # fmt: skip
    """What turns token grids like ``grids`` (n,h,w) int64 in [0,K), K = ``n_tokens``, into pictures (n,3,H,W) in [0,1]: the
    tokenizer in the checkpoint ``path``. None if there is none, or it cannot decode them, or is not the one they were
    ``made_by`` (its identity, or None if that is not known). If it is ``required``, stderr says the first, and the second is
    a ValueError."""
    path = checkpoint.locate(path)
    if not path.is_file() and not (required and path.is_dir()):  # a folder is an error, below
        if required:
            say(f"There is no checkpoint {path}, so TensorBoard shows shades of grey.")
        return None
    model = checkpoint.load(path).to(grids.device)
    wrong = _misfit(model, n_tokens, grids)
    if wrong and required:
        raise ValueError(f"--tokenizer is {path}, which {wrong}; name the one that made these tokens, or leave it out.")
    if made_by and not is_of(made_by, model):
        say(f"{path} did not make these tokens, so TensorBoard shows shades of grey; name the one that did as --tokenizer.")
    elif isinstance(model, Tokenizer) and not wrong:
        return lambda grids: to_pictures(model.decode_index(grids))
    return None


@torch.no_grad()
def _misfit(model: Model, n_tokens: int, grids: Tensor) -> str:
    """Why the ``model`` cannot decode such grids; "" if it can."""
    if not isinstance(model, Tokenizer):
        return f"holds {checks.article(type(model).__name__)}, but no tokenizer"
    if model.n_tokens != n_tokens:
        return f"has {model.n_tokens} codes, but this training is on {n_tokens}"
    try:
        to_pictures(model.decode_index(grids[:1]))
    except Exception as error:  # a third party's decoder may raise anything
        h, w = grids.shape[1:]
        return f"cannot decode grids of {h}x{w} tokens ({type(error).__name__}: {str(error).rstrip('.')})"
    return ""
