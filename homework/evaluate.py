"""Measures our compression against JPEG, WebP, AVIF and JPEG XL: ``python -m homework.evaluate``. See ``--help``."""

import csv
import io
import math
import os
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework import checkpoint, cli, codecs, container, metrics
from homework.codecs import Codec
from homework.compress import Compressor, pieces
from homework.data import to_float, to_uint8
from homework.generation import load_pair
from homework.images import decoded, image_paths, read_image
from homework.rates import Point, bjontegaard, body, file_name, plot, verdict
from homework.report import heat, page, save_picture

PIXELS_AT_ONCE = 2**21  # that go into MS-SSIM together


def evaluate(
    tokenizer: str,
    autoregressive: str,
    images: str = "data/valid",
    limit: int | None = None,
    image_size: str | None = None,
    out: str = "report",
    n_pictures: int = 4,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Compresses images with our models and with the usual codecs, and writes a page, a plot and tables about it.

    Args:
        tokenizer: checkpoint of a tokenizer; or several, with commas between them.
        autoregressive: checkpoint of a prior over that tokenizer's grids; or one for each tokenizer. Several pairs are
            several operating points, which Bjontegaard's measure needs; pictures are of the first pair.
        images: a folder of images, an image, or a dataset.json.
        limit: use only so many images, spread evenly over all of them; all by default. Most of the time goes into AVIF at
            its slowest, 4 to 5 seconds of one core for an image of 150x100.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped for all codecs; as they are by default.
            (The bytes of the originals stay those of the files.)
        out: the folder to write to; made if it is not there.
        n_pictures: how many images to show.
        batch_size: images that go through our models at once.
        device: of our models: auto, cpu, cuda or mps.
    """
    cli.at_least(1, n_pictures=n_pictures, batch_size=batch_size)
    if limit is not None:
        cli.at_least(1, limit=limit)
    folder, pairs = Path(str(out)), list_pairs(tokenizer, autoregressive)
    paths, size = spread(image_paths(str(images)), limit), cli.parse_size(image_size)
    device = cli.pick_device(device)
    compressors = {}
    for pair in pairs:
        compressors[pair] = Compressor(*load_pair(*pair, device), device, batch_size)
    rivals, left_out = codecs.available()
    folder.mkdir(parents=True, exist_ok=True)  # before the work, so that a folder that cannot be made is told at once

    ours = []
    for pair, compressor in compressors.items():
        setting = " + ".join(Path(path).stem for path in pair) if len(pairs) > 1 else ""
        ours.append(Point("ours", setting, measure_ours(compressor, paths, size)))
    curves = {"ours": ours} | measure_codecs(rivals, paths, size)
    compressor, threads = compressors[pairs[0]], torch.get_num_threads()
    shown = tqdm(spread(paths, n_pictures), "pictures", unit="img")
    pictures = [show(compressor, rivals, path, size, i, folder) for i, path in enumerate(shown)]
    facts = {
        "curves": curves,
        "bjontegaard": bjontegaard(curves),
        "original": float(np.mean([os.path.getsize(path) for path in paths])),
        "models": sum(os.path.getsize(path) for path in pairs[0]),
        "left_out": left_out,
        "said": {codec.name: codec.said for codec in rivals},
        "pictures": pictures,
        "highest": math.log2(compressor.coder.n_tokens),
        "exact": compressor.coder.exact,
        "where": f"{device.type}, {threads} thread{'s' * (threads > 1)}, batches of {batch_size}",
    }
    write_csv(folder / "rates.csv", [point.summary() for points in curves.values() for point in points])
    write_csv(folder / "bjontegaard.csv", facts["bjontegaard"])
    write_csv(folder / "images.csv", [row for points in curves.values() for point in points for row in point.each(paths)])
    with checkpoint.replacing(folder / "rates.png") as path:
        plot(curves).savefig(path, format="png", dpi=144)
    with checkpoint.replacing(folder / "index.html") as path:  # last, so that all it refers to is there
        path.write_text(page("Rate and distortion", body(facts)), "utf-8")
    print(*verdict(curves, facts["original"]), sep="\n")
    print(f"{folder / 'index.html'}: {len(paths)} images; open it in a browser.")


def list_pairs(tokenizer: str | tuple, autoregressive: str | tuple) -> list[tuple[str, str]]:
    """The (tokenizer, prior) paths that two comma-separated lists name. ValueError if they do not pair up."""
    lists = [value if isinstance(value, tuple | list) else str(value).split(",") for value in (tokenizer, autoregressive)]
    first, second = ([str(path) for path in paths] for paths in lists)
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ValueError(f"There are {len(first)} tokenizers but {len(second)} priors; name one prior for each tokenizer.")
    n = max(len(first), len(second))
    return list(dict.fromkeys(zip(first * (n // len(first)), second * (n // len(second)), strict=True)))


def spread(things: list, n: int | None) -> list:
    """``n`` of the things (all if None, or if there are fewer), evenly spaced."""
    n = len(things) if n is None else min(n, len(things))
    return [things[i * len(things) // n] for i in range(n)]


# --- measuring ------------------------------------------------------------------------------------------------------------


def measure_ours(compressor: Compressor, paths: list[str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Rows (n, COLUMNS) of our files, whose times are wall-clock times of a batch divided by its images. ValueError if an
    image is damaged."""
    rows, total = [], 0
    with tqdm(total=len(paths), desc="ours", unit="img") as bar:
        for _, images in decoded(pieces(paths, compressor.batch_size), size):
            for image in images:
                if isinstance(image, str):
                    raise ValueError(image)
            start = time.perf_counter()
            files = compressor.compress_batch([float_image(image) for image in images])
            middle = time.perf_counter()
            again = [to_uint8(x).cpu().numpy() for x in compressor.decompress_batch(files)]
            times = [(middle - start) / len(images), (time.perf_counter() - middle) / len(images)]
            for data, x_hat, image in zip(files, again, images, strict=True):
                rows.append([image.size // 3, len(data), payload(data), *likeness(x_hat[None], image)[0], *times])
                total += len(data)
            bar.update(len(images))
            bar.set_postfix_str(f"{total:,} bytes")
    return np.array(rows)


def measure_codecs(rivals: list[Codec], paths: list[str], size: tuple[int, int] | None = None) -> dict[str, list[Point]]:
    """The operating points of other codecs, by name; several images at the same time, and seconds of a thread's own
    processor time."""

    def measure(path: str) -> dict[tuple[str, int], list[float]]:
        image, found = read_image(path, size), {}
        for codec in rivals:
            results = [codec.timed(image, quality) for quality in codec.qualities]
            like = likeness(np.stack([result[1] for result in results]), image)
            for quality, (data, _, *times), (mse, ms_ssim) in zip(codec.qualities, results, like, strict=True):
                found[codec.name, quality] = [image.size // 3, len(data), codec.payload(data), mse, ms_ssim, *times]
        return found

    with ThreadPool(os.cpu_count()) as pool:  # Pillow's encoders let other threads run
        each = list(tqdm(pool.imap(measure, paths), "other codecs", len(paths), unit="img"))
    return {
        codec.name: [Point(codec.name, q, np.array([found[codec.name, q] for found in each])) for q in codec.qualities]
        for codec in rivals
    }


def likeness(x_hat: np.ndarray, image: np.ndarray) -> list[tuple[float, float]]:
    """Mean squared error (of pixels from 0 to 1) and MS-SSIM of each of (B,H,W,3) uint8 against one image (H,W,3)."""
    found, x = [], torch.from_numpy(np.array(image)).double() / 255
    for part in torch.from_numpy(x_hat).split(max(1, PIXELS_AT_ONCE // (image.shape[0] * image.shape[1]))):
        part = part.double() / 255
        found += zip(metrics.errors(part, x), metrics.ms_ssim(part, x.expand_as(part)).tolist(), strict=True)
    return found


def payload(data: bytes) -> int:
    """The bytes of one of our files that hold coded tokens."""
    return container.Reader(io.BytesIO(data), "The file").lengths[0]


def float_image(image: np.ndarray) -> Tensor:
    """(H,W,3) uint8 -> float in [-0.5,0.5]."""
    return to_float(torch.from_numpy(np.array(image)))


def bit_map(compressor: Compressor, image: np.ndarray) -> Tensor:
    """(H,W,3) uint8 -> (h,w) float64: the bits that each token takes in the file, by the coder's own frequencies."""
    grid, coder = compressor.to_tokens(float_image(image)[None])[0], compressor.coder
    bits = torch.empty(grid.shape, dtype=torch.float64)
    for (a, b), places in container.tiles(grid.shape, (coder.height, coder.width)):
        cut = np.stack([grid[top : top + a, left : left + b] for top, left in places])  # (T,a,b)
        own = torch.from_numpy(compressor.intervals(cut)[1]).view(-1, a, b)  # (T,N) -> (T,a,b)
        for (top, left), frequency in zip(places, own, strict=True):
            bits[top : top + a, left : left + b] = math.log2(container.TOTAL) - frequency.double().log2()
    return bits


def show(compressor: Compressor, rivals: list[Codec], path: str, size: tuple[int, int] | None, i: int, folder: Path) -> dict:
    """Writes pictures of one image: the original, ours, each codec's at about as many bytes, and our bits of each patch."""
    image = read_image(path, size)
    data = compressor.compress(float_image(image))
    with ThreadPool(os.cpu_count()) as pool:
        near = pool.map(lambda codec: codec.nearest(image, len(data)), rivals)
    bits = bit_map(compressor, image)
    pictures = {"original": image, "ours": to_uint8(compressor.decompress(data)).cpu().numpy()}
    captions = {"original": f"{os.path.getsize(path):,} bytes", "ours": f"{len(data):,} bytes"}
    for codec, (quality, file) in zip(rivals, near, strict=True):
        pictures[codec.name] = codec.decode(file)
        captions[codec.name] = f"{len(file):,} bytes, quality {quality}"
    for name in list(pictures)[1:]:
        captions[name] += f"<br>{metrics.psnr(likeness(pictures[name][None], image)[0][0]):.1f} dB"
    pictures["bits"] = over(bits / math.log2(compressor.coder.n_tokens), image, compressor.models.patch)
    captions["bits"] = f"{bits.sum():,.0f} bits, {bits.min():.1f} to {bits.max():.1f} a patch"
    for name, picture in pictures.items():
        save_picture(picture, folder / f"{file_name(name)}_{i}.png")
    return {"name": Path(path).stem, "size": image.shape[:2], "captions": captions}


def over(x: Tensor, image: np.ndarray, patch: int) -> np.ndarray:
    """A map (h,w) from 0 to 1 of an image's patches, in colours over the image (H,W,3) uint8 in grey, likewise."""
    colours = heat(x).numpy().repeat(patch, axis=0).repeat(patch, axis=1)[: image.shape[0], : image.shape[1]]
    return (0.5 * colours + 0.5 * image.mean(axis=-1, keepdims=True)).round().astype(np.uint8)


def write_csv(path: Path, rows: list[dict]) -> None:
    with checkpoint.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    cli.main("python -m homework.evaluate", evaluate)
