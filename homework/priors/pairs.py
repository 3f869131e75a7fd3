"""A tokenizer and a prior that belong together."""

from pathlib import Path

import torch

from homework.core import checkpoint, checks
from homework.core.arguments import read_json
from homework.core.fingerprint import identity, is_of
from homework.core.model import Model
from homework.priors.base import Prior
from homework.priors.cascade import PATHS, Cascade, named_models
from homework.priors.uniform import Uniform
from homework.tokenizers.base import Tokenizer

SHIPPED = "cascade.json"


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


def is_cascade(path: str | Path) -> bool:
    """Whether it is named in place of a prior: by a JSON file, as ``python -m homework.generation cascade`` reads it."""
    return Path(path).suffix.lower() == ".json"


def is_shipped(path: str | Path) -> bool:
    """Whether it means the pretrained cascade: its name, where there is no such file."""
    return str(path) == SHIPPED and not Path(path).exists()


def read_cascade(path: str | Path) -> list[dict]:
    """The stages of a cascade's file, or of the pretrained one, whose models are the pretrained ones."""
    if not is_shipped(path):
        return read_json(path).get("stages", [])
    stages, folder = read_json(checkpoint.PRETRAINED / SHIPPED)["stages"], checkpoint.PRETRAINED
    return [stage | {path: str(folder / f"{stage[path]}.pth") for path in PATHS if path in stage} for stage in stages]


def load_cascade(path: str | Path, device: str | torch.device = "cpu") -> Cascade:
    """ValueError or FileNotFoundError, as of :class:`homework.priors.cascade.Cascade`, if a file has none."""
    return Cascade(read_cascade(path), device)


def load_models(tokenizer: str | Path, autoregressive: str | Path,
                device: torch.device) -> tuple[Tokenizer, Prior | Cascade]:  # fmt: skip
    """As :func:`load_pair`; or, if the second is a cascade's file, its finest codebook and the cascade. ValueError if the
    tokenizer is another."""
    if not is_cascade(autoregressive):
        return load_pair(tokenizer, autoregressive, device)
    coder, cascade = load_tokenizer(tokenizer), load_cascade(autoregressive, device)
    if not is_of(identity(coder), cascade.codebooks[-1]):
        finest = read_cascade(autoregressive)[-1]["hr_codebook_path"]
        raise ValueError(f"{tokenizer} is not the finest codebook of {autoregressive}; name {finest}, which is.")
    return cascade.codebooks[-1], cascade


def model_files(tokenizer: str, autoregressive: str) -> set[Path]:
    """The checkpoints of a tokenizer and a prior, or of all models of a cascade."""
    if not is_cascade(autoregressive):
        return {Path(tokenizer), Path(autoregressive)}
    return set(map(Path, named_models(read_cascade(autoregressive))))


def reads_codes_of(prior: Prior, coder: Tokenizer) -> bool:
    """Whether the code vectors that the prior has stored, if it has any, are the tokenizer's, up to float16."""
    if (stored := prior.stored_codes()) is None:
        return True
    own = coder.code_table()
    return stored.shape == own.shape and bool((stored - own).abs().max() <= 0.01 * own.abs().max())
