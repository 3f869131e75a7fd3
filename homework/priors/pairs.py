"""A tokenizer and a prior that belong together."""

from pathlib import Path

import torch

from homework.core import checkpoint, checks
from homework.core.fingerprint import is_of
from homework.core.model import Model
from homework.priors.base import Prior
from homework.priors.uniform import Uniform
from homework.tokenizers.base import Tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer in a checkpoint, on the CPU. ValueError if it holds another model."""
    model = checkpoint.load(path)
    if not isinstance(model, Tokenizer):
        raise checkpoint.wrong_model(path, type(model).__name__, "a tokenizer")
    return model


def check_prior(path: str | Path, model: Model) -> Prior:
    """``model``, loaded from ``path``, as a prior over a single grid. ValueError if it is something else."""
    if model.data == "multiscale":
        found = checks.article(type(model).__name__)
        raise ValueError(f"{path} holds {found}, which needs a coarser grid to start from; see "
                         "python -m homework.generation cascade.")  # fmt: skip
    if not isinstance(model, Prior):
        raise checkpoint.wrong_model(path, type(model).__name__, "a prior")
    return model


def load_pair(tokenizer: str | Path, autoregressive: str | Path, device: torch.device) -> tuple[Tokenizer, Prior]:
    """A tokenizer and a prior from their checkpoints (or the prior "uniform"), on ``device``. ValueError if they do not
    belong together."""
    coder = load_tokenizer(tokenizer).to(device)
    if str(autoregressive) == "uniform":
        return coder, Uniform(coder.n_tokens).to(device)
    prior = check_prior(autoregressive, checkpoint.load(autoregressive)).to(device)
    if coder.n_tokens != prior.n_tokens:
        raise ValueError(f"{tokenizer} has {coder.n_tokens} codes, but {autoregressive} was trained on {prior.n_tokens}; "
                         f"train a prior on this tokenizer's grids.")  # fmt: skip
    known = prior.meta.get("tokenizer")  # missing where the tokens were made by an early version
    if (known and not is_of(known, coder)) or not reads_codes_of(prior, coder):
        raise ValueError(f"{autoregressive} was trained on the grids of another tokenizer than {tokenizer}; name that one, "
                         f"or train a prior on this one's grids.")  # fmt: skip
    return coder, prior


def reads_codes_of(prior: Prior, coder: Tokenizer) -> bool:
    """Whether the code vectors that the prior has stored, if it has any, are the tokenizer's, up to float16."""
    if (stored := prior.stored_codes()) is None:
        return True
    own = coder.code_table()
    return stored.shape == own.shape and bool((stored - own).abs().max() <= 0.01 * own.abs().max())
