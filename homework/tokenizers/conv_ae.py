"""A fully convolutional auto-encoder: any image becomes a map of a few numbers at every position, and comes back."""

from itertools import pairwise

from torch import Tensor, nn

from homework.core import checks
from homework.nn.blocks import ACTIVATIONS, Conv, unpatch
from homework.tokenizers.base import AutoEncoder


class Residual(nn.Module):
    """A bottleneck block (He et al., arXiv 1512.03385, figure 5): (B,h,w,D) -> (B,h,w,D), a quarter of D inside.
    Starts close to the identity: no activation follows the sum, so that a network of these starts out linear."""

    def __init__(self, D: int, activation: type[nn.Module]):
        super().__init__()
        narrow = (D + 3) // 4
        first, middle, last = nn.Linear(D, narrow), Conv(narrow, narrow, 3, padding=1), nn.Linear(narrow, D)
        self.around = nn.Sequential(first, activation(), middle, activation(), last)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.around(x)


class ConvEncoder(nn.Module):
    """(B,H,W,3) -> (B,h,w,out): each layer halves height and width, and a residual block follows; grey images are the mean
    of the three channels. H, W multiples of 2 ** len(channels)."""

    def __init__(self, image_channel: int, channels: list[int], out: int, hidden: type[nn.Module], final: nn.Module):
        super().__init__()
        self.grey = image_channel == 1
        layers: list[nn.Module] = []
        for i, (inp, D) in enumerate(pairwise([image_channel, *channels])):
            kernel, padding = (2, 0) if i else (4, 1)
            layers += [Conv(inp, D, kernel, stride=2, padding=padding), Residual(D, hidden)]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Sequential(nn.Linear(channels[-1], out), final)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x.mean(dim=-1, keepdim=True) if self.grey else x))


class Double(nn.Module):
    """(B,h,w,inp) -> (B,2h,2w,out): a convolution to all four pixels of each position at once (Shi et al., arXiv
    1609.05158, section 3.2), which makes no checkerboards."""

    def __init__(self, inp: int, out: int, kernel: int):
        super().__init__()
        self.conv = Conv(inp, 4 * out, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return unpatch(self.conv(x), 2)


class ConvDecoder(nn.Module):
    """(B,h,w,inp) -> (B,H,W,3): the encoder's layers, mirrored; of one channel, three equal ones are made. The activation
    ``final`` is brought into the range of pixels: tanh halved, sigmoid lowered by 0.5, others as they are."""

    def __init__(self, image_channel: int, channels: list[int], inp: int, hidden: type[nn.Module], final: str):
        super().__init__()
        self.inp = nn.Linear(inp, channels[-1])
        widths, layers = [image_channel, *channels], []
        for i in reversed(range(len(channels))):
            layers += [Residual(widths[i + 1], hidden), Double(widths[i + 1], widths[i], kernel=1 if i else 3)]
        self.layers, self.final = nn.Sequential(*layers), ACTIVATIONS[final]()
        self.scale, self.shift = {"tanh": (0.5, 0.0), "sigmoid": (1.0, -0.5)}.get(final, (1.0, 0.0))

    def forward(self, z: Tensor) -> Tensor:
        return (self.final(self.layers(self.inp(z))) * self.scale + self.shift).expand(-1, -1, -1, 3)


class ConvAutoEncoder(AutoEncoder):
    """Compresses images of any size to maps of ``latent_channel`` numbers at each position, and back.

    ::

        x (...,H,W,3) -> edge-pad -> ConvEncoder -> z (...,h,w,latent_channel) -> ConvDecoder -> crop -> x_hat (...,H,W,3)

    Args:
        model_lr: peak learning rate of a training, above 0, unless --lr gives another.
        image_channel: 3, or 1 for grey: then the mean of an image's channels is compressed, and comes back in all three.
        min_channel, max_channel: width of the first (finest) and of the last layer, from 1 to 4096; those between grow
            geometrically. A single layer has max_channel.
        num_layers: how often the resolution is halved, from 1 to 8: h = ceil(H / 2 ** num_layers), and w likewise.
        use_final_enc_activation: whether encoder_activation_type is applied to z; tanh keeps it in [-1,1].
        use_final_dec_activation: whether decoder_activation_type is applied to x_hat, see :class:`ConvDecoder`.
        hidden_activation_type: of the layers; all three are names in ``ACTIVATIONS``.
    """

    architecture = "convolutional auto-encoder 1"
    training_options = frozenset({"model_lr"})

    def __init__(self, model_lr: float = 1e-3, image_channel: int = 3, min_channel: int = 32, max_channel: int = 128,
                 num_layers: int = 2, latent_channel: int = 8, hidden_activation_type: str = "silu",
                 use_final_enc_activation: bool = False, encoder_activation_type: str = "tanh",
                 use_final_dec_activation: bool = False, decoder_activation_type: str = "sigmoid"):  # fmt: skip
        checks.positive(model_lr=model_lr)
        if type(image_channel) is not int or image_channel not in (1, 3):
            raise ValueError(f"image_channel is {image_channel!r}, but must be 3, or 1 for grey images.")
        checks.integer(1, 4096, min_channel=min_channel, max_channel=max_channel, latent_channel=latent_channel)
        checks.integer(1, 8, num_layers=num_layers)
        if min_channel > max_channel:
            raise ValueError(f"min_channel is {min_channel}, but must be at most max_channel, which is {max_channel}; "
                             "change one of them.")  # fmt: skip
        checks.choice(ACTIVATIONS, **{name: self.config[name] for name in self.config if name.endswith("_activation_type")})
        checks.boolean(**{name: self.config[name] for name in self.config if name.startswith("use_final_")})
        growth = (max_channel / min_channel) ** (1 / max(1, num_layers - 1))
        channels = [round(max_channel / growth**i) for i in reversed(range(num_layers))]
        hidden = ACTIVATIONS[hidden_activation_type]
        to_latent = ACTIVATIONS[encoder_activation_type if use_final_enc_activation else "none"]()
        to_pixels = decoder_activation_type if use_final_dec_activation else "none"
        encoder = ConvEncoder(image_channel, channels, latent_channel, hidden, to_latent)
        decoder = ConvDecoder(image_channel, channels, latent_channel, hidden, to_pixels)
        super().__init__(2**num_layers, encoder, decoder, local=True)
        self.learning_rate = model_lr
        for name, weight in self.named_parameters():
            if "around" not in name:  # the linear path from pixels to z and back keeps lengths
                (nn.init.orthogonal_ if weight.ndim > 1 else nn.init.zeros_)(weight)
