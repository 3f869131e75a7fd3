"""Compression measured on images, ours and the other codecs', and the pictures of a report."""

import hashlib
import io
import json
import math
import os
import threading
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from homework.codec import archive, range_coder
from homework.codec.compressor import Compressor
from homework.codec.parallel import groups
from homework.core import checks
from homework.datasets.image_files import decoded, read_ahead, read_image
from homework.datasets.images import to_uint8
from homework.datasets.shards import file_size
from homework.evaluation import metrics, pages
from homework.evaluation.codecs import Codec
from homework.evaluation.curves import COLUMNS, Point
from homework.evaluation.pictures import float_image, heat, save_picture


class Measured:
    """Rows (COLUMNS) by what they were measured of, also in a file of a JSON object a line, so that an evaluation that was
    interrupted can resume. If it ``resumes``, the rows of all files in ``folder`` are read, of however many processes they
    are; otherwise the own file, of the process ``rank``, is replaced. ValueError if one that is read is damaged."""

    def __init__(self, folder: Path, resumes: bool = False, rank: int = 0):
        self.folder, self.path = folder, folder / f"measured{f'_{rank}' if rank else ''}.jsonl"
        self.rows, self.lock = {}, threading.Lock()
        self.mode = "w"  # when the first row is kept, and not before, so that a mistake costs nothing
        if not resumes:
            return
        if self.path.is_file():
            self.rows, whole = read_rows(self.path)
            if self.path.stat().st_size > whole:
                os.truncate(self.path, whole)
            self.mode = "a"
        for path in self.others():
            self.keep_all(read_rows(path)[0])

    def others(self) -> list[Path]:
        """The files of other processes."""
        return sorted({*self.folder.glob("measured*.jsonl")} - {self.path})

    @staticmethod
    def key(image: np.ndarray, *setting: object) -> str:
        """A hash of an image (H,W,3) uint8 and of the codec with its options."""
        return hashlib.sha256(repr((image.shape, *setting)).encode() + image.tobytes()).hexdigest()

    def keep(self, key: str, row: list[float]) -> None:
        with self.lock, open(self.path, self.mode, encoding="utf-8") as file:  # several threads measure other codecs
            self.rows[key], self.mode = row, "a"
            file.write(json.dumps({"of": key, "row": row}) + "\n")

    def keep_all(self, rows: dict[str, list[float]]) -> None:
        """Keeps those that are new."""
        for key, row in rows.items():
            if key not in self.rows:
                self.keep(key, row)


def read_rows(path: Path) -> tuple[dict[str, list[float]], int]:
    """The rows of a file of :class:`Measured`, and the bytes that they take: the last line may have been cut short.
    ValueError if it is damaged."""
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        rows = {str(line["of"]): as_row(line["row"]) for line in map(json.loads, lines)}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged; leave --resume out to measure again.") from error
    return rows, sum(map(len, lines))


def as_row(row: Any) -> list[float]:
    """ValueError unless it has a finite number for each of COLUMNS."""
    numbers = isinstance(row, list) and all(checks.is_number(value) and math.isfinite(value) for value in row)
    if not numbers or len(row) != len(COLUMNS):
        raise ValueError("no row")
    return row


def measure_ours(compressor: Compressor, paths: list[str], size: tuple[int, int] | None, measured: Measured) -> np.ndarray:
    """Rows (n, COLUMNS) of our files; times are wall-clock times of a batch over its images. ValueError for damaged ones."""
    models, keys = compressor.models, []
    setting = models, models.version, *compressor.encoders, compressor.effort, compressor.quality
    with tqdm(total=len(paths), desc="ours", unit="img") as bar:
        for _, images in decoded(read_ahead(paths, compressor.batch_size), size):
            if bad := [image for image in images if isinstance(image, str)]:
                raise ValueError(bad[0])
            keys += (own := [measured.key(image, *setting) for image in images])
            missing = {key: image for key, image in zip(own, images, strict=True) if key not in measured.rows}
            if missing:
                measure_batch(compressor, missing, measured)
            bar.update(len(images))
            bar.set_postfix_str(f"{sum(measured.rows[key][1] for key in keys):,} bytes")
    return np.array([measured.rows[key] for key in keys])


def measure_batch(compressor: Compressor, images: dict[str, np.ndarray], measured: Measured) -> None:
    """Keeps a row of each image (H,W,3) uint8 under its key."""
    start = time.perf_counter()
    files = compressor.compress_batch([float_image(image) for image in images.values()])
    middle = time.perf_counter()
    again = [to_uint8(x).cpu().numpy() for x in compressor.decompress_batch(files)]
    seconds = middle - start, time.perf_counter() - middle
    for (key, image), data, x_hat in zip(images.items(), files, again, strict=True):
        times = (s / len(images) for s in seconds)
        measured.keep(key, [image.size // 3, len(data), payload(data), *distortion(x_hat, image), *times])


def measure_codecs(rivals: list[Codec], paths: list[str], size: tuple[int, int] | None,
                   measured: Measured) -> dict[str, list[Point]]:  # fmt: skip
    """The operating points of other codecs, by name, with seconds of a thread's own processor time."""
    settings = [(codec, quality) for codec in rivals for quality in codec.qualities]

    def measure(path: str) -> list[list[float]]:  # COLUMNS at each setting
        image = read_image(path, size)
        keys = [measured.key(image, codec.name, codec.options, quality) for codec, quality in settings]
        for key, (codec, quality) in zip(keys, settings, strict=True):
            if key not in measured.rows:
                data, x_hat, *times = codec.timed(image, quality)
                measured.keep(key, [image.size // 3, len(data), codec.payload(data), *distortion(x_hat, image), *times])
        return [measured.rows[key] for key in keys]

    with ThreadPool(os.cpu_count()) as pool:  # Pillow's encoders let other threads run
        images = list(tqdm(pool.imap(measure, paths), "other codecs", len(paths), unit="img"))
    columns = np.array(images).swapaxes(0, 1)  # (n, settings, COLUMNS) -> (settings, n, COLUMNS)
    points = [Point(codec.name, quality, rows) for (codec, quality), rows in zip(settings, columns, strict=True)]
    return dict(groups(points, [point.codec for point in points]))


def distortion(x_hat: np.ndarray, image: np.ndarray) -> tuple[float, float]:
    """Mean squared error (of pixels from 0 to 1) and MS-SSIM of two images (H,W,3) uint8."""
    x, y = (torch.from_numpy(np.array(z)[None]).double() / 255 for z in (x_hat, image))
    return metrics.errors(x, y)[0], metrics.ms_ssim(x, y).item()


def payload(data: bytes) -> int:
    """The bytes of one of our files that hold coded tokens."""
    return archive.Reader(io.BytesIO(data)).lengths[0]


def bit_map(compressor: Compressor, grid: np.ndarray) -> Tensor:
    """A grid, as ``compressor`` makes it, int64 -> (h,w) float64: the bits that each patch takes in the file, by the coder's
    own frequencies."""
    tokens = grid[..., 0] if grid.ndim == 3 else grid
    bits = torch.empty(tokens.shape, dtype=torch.float64)
    for (a, b), corners, found, _ in compressor.intervals(tokens[None]):
        frequencies = torch.from_numpy(found[1, 0]).view(-1, a, b)  # (T,N) -> (T,a,b)
        for (top, left), frequency in zip(corners, frequencies, strict=True):
            bits[top : top + a, left : left + b] = math.log2(range_coder.TOTAL) - frequency.double().log2()
    return compressor.by_patch(bits, grid)


def show(compressor: Compressor, rivals: list[Codec], path: str, size: tuple[int, int] | None, i: int, folder: Path) -> dict:
    """Writes pictures of one image: the original, ours, each codec's at about as many bytes, and our bits of each patch.
    Returns {"name", "size": (H,W), "captions": the lines under each picture by its name}."""
    image = read_image(path, size)
    data = compressor.compress(float_image(image))
    with ThreadPool(os.cpu_count()) as pool:
        near = pool.map(lambda codec: codec.nearest(image, len(data)), rivals)
    pictures = {"original": image, "ours": to_uint8(compressor.decompress(data)).cpu().numpy()}
    captions = {"original": [f"{file_size(path):,} bytes"], "ours": [f"{len(data):,} bytes"]}
    for codec, (quality, file) in zip(rivals, near, strict=True):
        pictures[codec.name] = codec.decode(file)
        captions[codec.name] = [f"{len(file):,} bytes, quality {quality}"]
    for name in list(pictures)[1:]:
        captions[name].append(f"{metrics.psnr(distortion(pictures[name], image)[0]):.1f} dB")
    bits = bit_map(compressor, compressor.to_tokens(float_image(image)[None])[0])
    pictures["bits"] = over(bits / math.log2(compressor.tokenizer.n_tokens), image, compressor.models.patch)
    captions["bits"] = [f"{bits.sum():,.0f} bits, {bits.min():.1f} to {bits.max():.1f} a patch"]
    for name, picture in pictures.items():
        save_picture(picture, folder / f"{pages.file_name(name)}_{i}.png")
    return {"name": Path(path).stem, "size": image.shape[:2], "captions": captions}


def over(x: Tensor, image: np.ndarray, patch: int) -> np.ndarray:
    """A map (h,w) from 0 to 1 of an image's patches, in colours over the image (H,W,3) uint8 in grey, likewise."""
    colours = heat(x).numpy().repeat(patch, axis=0).repeat(patch, axis=1)[: image.shape[0], : image.shape[1]]
    return (0.5 * colours + 0.5 * image.mean(axis=-1, keepdims=True)).round().astype(np.uint8)
