"""Images to feature vectors, in which sets of images are compared. Each extractor is a module (B,H,W,3) uint8 -> (B,D)."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.ae import PatchAutoEncoder
from homework.core import checkpoint
from homework.core.processes import say
from homework.datasets.images import to_float
from homework.nn.blocks import pad_to_patches
from homework.nn.pca import PCAEncoder

WIDTHS = (32, 64, 128)  # of the layers of random convolutions
SEED = 0  # of their weights


class Extractor(nn.Module):
    """``about`` says what the features are; ``standardized`` whether they are to be standardized by the reference images, to
    mean 0 and standard deviation 1, for features of any scale."""

    about: str
    standardized = True


class HiddenLayer(Extractor):
    """The last hidden layer of the pretrained PatchAutoEncoder's encoder, 128 numbers of each 25x25 patch; of each, the mean
    and the deviation over the patches. Not the bottleneck after it: its numbers are coordinates in one of 16 bases, another
    for another kind of patch, whose means say nothing."""

    about = "last hidden layer of the pretrained PatchAutoEncoder's encoder, mean and deviation over the patches"

    def __init__(self) -> None:
        super().__init__()
        model = checkpoint.load(checkpoint.PRETRAINED / "PatchAutoEncoder.pth", "PatchAutoEncoder")
        assert isinstance(model, PatchAutoEncoder) and isinstance(model.encoder, PCAEncoder)
        self.patch_size, self.encoder = model.stride, model.encoder

    def forward(self, images: Tensor) -> Tensor:
        components = self.encoder.pca.project(pad_to_patches(to_float(images), self.patch_size))
        hidden = self.encoder.blocks(self.encoder.inp(components / self.encoder.pca.scale))  # (B,h,w,D)
        return moments(hidden.movedim(-1, 1))


class RandomConvolutions(Extractor):
    """Convolutions that have learned nothing, 3x3 with stride 2 and ReLU; of the last layer, the mean and the deviation of
    each channel over all positions. No data set has shaped these features, which serves best for images unlike photographs
    (Naeem et al., arXiv 2002.09797)."""

    about = f"{len(WIDTHS)} layers of random convolutions, seed {SEED}, mean and deviation over the positions"

    def __init__(self) -> None:
        super().__init__()
        draws = np.random.PCG64(SEED)  # its raw numbers are the same on all machines and in all versions, see NEP 19
        for i, (inp, out) in enumerate(zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)):
            raw = draws.random_raw(out * inp * 9) >> np.uint64(11)  # 53 bits
            uniform = torch.from_numpy(raw.astype(np.float64) * 2.0**-52 - 1)  # in [-1,1)
            weight = uniform.float().view(out, inp, 3, 3) * math.sqrt(6 / (9 * inp))  # He et al., arXiv 1502.01852
            self.register_buffer(f"weight{i}", weight)

    def forward(self, images: Tensor) -> Tensor:
        x = to_float(images).movedim(-1, 1)  # (B,H,W,3) -> (B,3,H,W)
        for weight in self.buffers():
            x = F.conv2d(x, weight, stride=2, padding=1).relu()
        return moments(x)


class Inception(Extractor):
    """The last pooling layer of InceptionV3 with the weights of Heusel et al., which torch-fidelity downloads once; with it
    the Frechet distance is the FID, and the kernel distance the KID. ModuleNotFoundError without the package, OSError
    without the weights."""

    about = "InceptionV3's last pooling layer, in which the distances are FID and KID"
    standardized = False

    def __init__(self) -> None:
        super().__init__()
        from torch_fidelity import FeatureExtractorInceptionV3

        try:
            self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            what = f"The weights of Inception cannot be had ({error}); leave inception out, or connect once."
            raise OSError(what) from error

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images.movedim(-1, 1))[0]  # (B,H,W,3) -> (B,3,H,W) -> (B,2048)


def moments(x: Tensor) -> Tensor:
    """(B,C,h,w) -> (B,2C): mean and standard deviation of each channel over all positions."""
    return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3), correction=0)], dim=1)


EXTRACTORS: dict[str, Callable[[], Extractor]] = {
    "autoencoder": HiddenLayer,
    "random": RandomConvolutions,
    "inception": Inception,
}


def load_extractors(names: str | None, device: torch.device) -> dict[str, Extractor]:
    """Those that ``names``, with commas between them, name; by default all that can be had, and a sentence on stderr if
    Inception cannot. ValueError, ModuleNotFoundError or OSError if one that is named does not exist or cannot be had."""
    found: dict[str, Extractor] = {}
    for name in (names or ",".join(EXTRACTORS)).split(","):
        if name not in EXTRACTORS:
            raise ValueError(f"--features has {name!r}, but may have {', '.join(EXTRACTORS)}, with commas between them.")
        try:
            found[name] = EXTRACTORS[name]().to(device).eval()
        except (ModuleNotFoundError, OSError) as error:
            if names or name != "inception":
                raise
            why = 'it needs pip install "homework[fid]".' if isinstance(error, ModuleNotFoundError) else str(error)
            say(f"FID is left out: {why}")
    return found
