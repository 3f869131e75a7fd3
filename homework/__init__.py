"""Image tokenizers and autoregressive priors: train, generate, grade."""

import importlib

EXPORTS = {
    "AutoregressiveModel": "homework.autoregressive",
    "BSQPatchAutoEncoder": "homework.bsq",
    "CascadeStage": "homework.cascade",
    "Compressor": "homework.compress",
    "ConvAutoEncoder": "homework.conv_ae",
    "FeatureDataset": "homework.feature_data",
    "GatedPixelCNN": "homework.pixelcnn",
    "ImageDataset": "homework.data",
    "MnistDataset": "homework.data",
    "PatchAutoEncoder": "homework.ae",
    "PixelCNN": "homework.pixelcnn",
    "TokenDataset": "homework.data",
    "VQPatchAutoEncoder": "homework.vq",
    "VQVAE": "homework.vq",
    "load": "homework.checkpoint",
}
__all__ = list(EXPORTS)


def __getattr__(name: str):
    """Imports a class or function, or its module, when it is first asked for (PEP 562), so that ``python -m homework.data``
    loads data.py once."""
    if f"homework.{name}" in EXPORTS.values():
        return importlib.import_module(f"homework.{name}")
    if name not in EXPORTS:
        raise AttributeError(f"module 'homework' has no attribute {name!r}")
    return getattr(importlib.import_module(EXPORTS[name]), name)
