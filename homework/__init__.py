"""Image tokenizers and autoregressive priors: train, generate, compress, grade."""

import importlib

from homework.core.registry import FITTED, MODELS

__version__ = "2.0.0"  # read by pyproject.toml
# every name that can be imported from the package itself, and its module; imported when first asked for (PEP 562)
EXPORTS = MODELS | FITTED | {
    "Compressor": "homework.codec.compressor",
    "Dataset": "homework.datasets.base",
    "EnhancedCompressor": "homework.codec.enhanced_compressor",
    "FeatureDataset": "homework.datasets.features",
    "ImageDataset": "homework.datasets.images",
    "MnistDataset": "homework.datasets.mnist",
    "Model": "homework.core.model",
    "Prior": "homework.priors.base",
    "Steps": "homework.priors.steps",
    "TokenDataset": "homework.datasets.tokens",
    "Tokenizer": "homework.tokenizers.base",
    "load": "homework.core.checkpoint",
    "register": "homework.core.registry",
}
__all__ = list(EXPORTS)


def __getattr__(name: str) -> object:
    if name in ("ae", "autoregressive", "bsq"):
        return importlib.import_module(f"homework.{name}")
    if name not in EXPORTS:
        raise AttributeError(f"module 'homework' has no attribute {name!r}")
    return getattr(importlib.import_module(str(EXPORTS[name])), name)
