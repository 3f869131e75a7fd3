"""The tab Compress: an image as a file of ours, beside other codecs within as many bytes."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch

from homework.codec.compressor import Compressor
from homework.codec.format import is_enhanced
from homework.codec.search import search_rounds
from homework.datasets.images import to_float, to_uint8
from homework.evaluation import metrics
from homework.evaluation.codecs import Codec, available
from homework.evaluation.curves import listed
from homework.evaluation.measure import bit_map, distortion, over
from homework.studio_tabs.models import Models, Source, command_line

RIVALS = ("WebP", "AVIF", "JPEG")
WORST = 0.02  # mean squared error of a patch that the map shows brightest


@dataclasses.dataclass
class Row:
    """A line of the table: bytes, PSNR in dB, MS-SSIM."""

    name: str
    n_bytes: int
    psnr: float
    ms_ssim: float


@dataclasses.dataclass
class Comparison:
    """An image, the file that we make of it, and pictures (H,W,3) uint8 by name: the original, ours, maps, other codecs'."""

    source: Source
    file: bytes
    pictures: dict[str, np.ndarray]
    rows: list[Row]
    note: str = ""


def compress(models: Models, source: Source, quality: float, effort: int) -> Iterator[Comparison]:
    """What the encoder's tokens give, and then those after each round of the search. The last is what ``homework.compress``
    writes. ValueError for a quality or an effort that is none."""
    x = torch.from_numpy(source.pixels)
    compressor = models.compressor.at(quality, max(1, effort))  # with effort 0 it may have but one quality
    start, lmbda = torch.from_numpy(compressor.encoded(x[None], quality)[0]), compressor.lmbda_at(quality)
    for tokens in search_rounds(compressor.tokenizer, compressor.prior, x, lmbda, effort, start):
        yield compare(compressor, source, compressor.completed(x, tokens.cpu().numpy(), quality))


def compare(compressor: Compressor, source: Source, grid: np.ndarray) -> Comparison:
    """The file of a grid, what it decodes to, and where its bits and its errors are."""
    H, W = source.pixels.shape[:2]
    (file,), (x_hat,) = compressor.compress_tokens(grid[None], (H, W)), compressor.to_images([grid], [(H, W)])
    ours, patch = to_uint8(x_hat).cpu().numpy(), compressor.models.patch
    bits = bit_map(compressor, grid) / math.log2(compressor.tokenizer.n_tokens)
    pictures = {"original": source.pixels, "ours": ours, "map of bits": over(bits, source.pixels, patch),
                "map of errors": over(error_map(ours, source.pixels, patch) / WORST, source.pixels, patch)}  # fmt: skip
    return Comparison(source, file, pictures, [measured("ours", file, ours, source.pixels)])


def error_map(x_hat: np.ndarray, x: np.ndarray, patch: int) -> torch.Tensor:
    """Two images (H,W,3) uint8 -> (h,w): the mean squared error (of pixels from 0 to 1) of each patch."""
    error = (to_float(torch.from_numpy(x_hat)) - to_float(torch.from_numpy(np.array(x)))).square().mean(dim=-1)  # (H,W)
    return torch.nn.functional.avg_pool2d(error[None], patch, ceil_mode=True)[0]


def measured(name: str, file: bytes, x_hat: np.ndarray, x: np.ndarray) -> Row:
    mse, ms_ssim = distortion(x_hat, x)
    return Row(name, len(file), metrics.psnr(mse), ms_ssim)


def rivals() -> list[Codec]:
    """The other codecs that work here."""
    return [codec for codec in available()[0] if codec.name in RIVALS]


def add_codec(found: Comparison, codec: Codec, tried: dict[int, bytes]) -> Comparison:
    """With the codec's file of at most as many bytes as ours, or its smallest; ``tried`` holds its files of this image by
    quality, and gets more."""
    _, file = codec.within(found.source.pixels, [len(found.file)], tried)[0]
    picture = codec.decode(file)
    rows = [*found.rows, measured(codec.name, file, picture, found.source.pixels)]
    return dataclasses.replace(found, pictures=found.pictures | {codec.name: picture}, rows=rows)


def table(found: Comparison) -> str:
    """In Markdown."""
    lines = [f"| {row.name} | {row.n_bytes:,} | {row.psnr:.2f} | {row.ms_ssim:.4f} |" for row in found.rows]
    return "\n".join(["| | bytes | PSNR, dB | MS-SSIM |", "|:--|--:|--:|--:|", *lines])


def remarks(models: Models, found: Comparison, effort: int) -> str:
    """What else there is to say, in sentences."""
    (H, W), most = found.source.pixels.shape[:2], found.rows[0].n_bytes
    above = [row.name for row in found.rows if row.n_bytes > most]
    return " ".join([
        f"{W}x{H} pixels, {8 * most / (H * W):.3f} bits a pixel.",
        *[f"Scaled down from {found.source.original[1]}x{found.source.original[0]}; the command takes the whole image."]
        * (found.source.original != (H, W)),
        *["Effort 0 takes the encoder's tokens, of its one quality; from 1 on, quality counts."]
        * (effort == 0 and not models.tokenizer.has_dial and not is_enhanced(found.file[2] % 16)),
        *([f"{listed(above)} cannot make it so small."] if above else []),
    ])  # fmt: skip


def command(models: Models, source: Source, quality: float, effort: int) -> str:
    """The command line that writes the same file; or that of the whole image, if the page shows a smaller one."""
    # without a search or a dial there is one quality, but for what an enhancement layer adds
    counts = effort or models.tokenizer.has_dial or models.compressor.at(quality, 1).models.enhanced
    chosen = f"{quality:g}" if counts else None
    return command_line("compress", "compress", *models.names, source.name, "image.hwi", effort=effort, quality=chosen)


def open_file(models: Models, data: bytes) -> tuple[np.ndarray, str]:
    """A file of ours -> its picture (H,W,3) uint8, and a sentence about it. ValueError, in one, if it is damaged or another
    program's."""
    picture = to_uint8(models.compressor.decompress(data)).cpu().numpy()
    return picture, f"{len(data):,} bytes, {picture.shape[1]}x{picture.shape[0]} pixels."
