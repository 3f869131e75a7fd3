"""What each effort of the search finds, and what it takes: ``python -m bench.efforts``. Prints a table in Markdown; the
command that made the documents'.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.searching import counted
from homework.codec import dial, tiles
from homework.codec.compressor import Compressor
from homework.codec.loading import load_compressor
from homework.codec.search import Objective, search
from homework.core import checkpoint, cli
from homework.datasets.image_files import image_paths, read_image, spread
from homework.datasets.images import to_float
from homework.evaluation import codecs, curves, measure

TOKENIZER, PRIOR = (checkpoint.PRETRAINED / f"{name}.pth" for name in ("BSQPatchAutoEncoder", "AutoregressiveModel"))
TITLES = ("effort", "GFLOP a frame", "seconds of a core", "bytes", "PSNR of the mean error", "J x 10^6",
          "of the last one's gain", "payload, Bjontegaard rate")  # fmt: skip
QUALITY = float(dial.QUALITY)  # as parsed, by which rows are known
LMBDA = dial.lmbda_at(QUALITY)


def efforts(data: str = "data/valid", *, limit: int = 16, efforts: str = "0,1,2,3,4,5,6,7,8",
            qualities: str = "20,35") -> None:  # fmt: skip
    """Compresses images at several efforts, and prints what each takes of them and of time, on one core: half an hour.

    Examples:
        python -m bench.efforts data/valid
        python -m bench.efforts data/valid --limit 4 --efforts 0,4,5,6,7,8,9 --qualities 50

    Args:
        data: the images.
        limit: use so many of them, evenly spread.
        efforts: from 0 to 9, with commas between them; the gain of the last one is the whole.
        qualities: besides 50, of which all columns but the Bjontegaard rate are.
    """
    cli.at_least(1, limit=limit)
    torch.set_num_threads(1)
    numbers = [int(effort) for effort in str(efforts).split(",")]
    every = sorted({*dial.parse_qualities(str(qualities)), QUALITY})
    paths = spread(image_paths(data), limit)
    base = load_compressor(TOKENIZER, PRIOR, torch.device("cpu"), 16, 0)
    base.workers = 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measured = measure.Measured(Path(folder))
        avif = [codec for codec in codecs.available()[0] if codec.name == "AVIF"]
        theirs = curves.curve(measure.measure_codecs(avif, paths, None, measured)["AVIF"], "payload")
        per_call = gflop(base, to_float(torch.from_numpy(read_image(paths[0]))))
        for effort in numbers:
            with counted("cost") as cost, counted("scores") as scores:
                point = measured_at(base, QUALITY, effort, paths, measured)
            calls = 1, effort > 0, cost.total() / len(paths), scores.total() / len(paths)
            ours = [measured_at(base, quality, effort, paths, measured) for quality in every]  # this one is not made again
            rate = curves.bd_rate(curves.curve(ours, "payload"), theirs)
            J = point["mse"] + LMBDA * 8 * point["payload"] / point["pixels"]
            rows.append((effort, sum(n * g for n, g in zip(calls, per_call, strict=True)), point, J, rate))
    print(f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|", sep="\n")
    first, last = rows[0][3], rows[-1][3]
    for effort, work, point, J, rate in rows:
        gain = f"{(first - J) / (first - last):.0%}" if J < first else ""
        print(f"| {effort} | {work:.3g} | {point['encode_s']:.2g} | {point['payload']:.1f} | {point['psnr']:.2f} dB | "
              f"{1e6 * J:,.0f} | {gain} | {'' if rate is None else f'{rate:.1%}'} |")  # fmt: skip


def measured_at(base: Compressor, quality: float, effort: int, paths: list[str], measured: measure.Measured) -> curves.Point:
    rows = measure.measure_ours(base.at(quality, effort), paths, None, measured)
    return curves.Point("ours", f"quality {quality:g}", rows)


def gflop(base: Compressor, x: Tensor) -> list[float]:
    """For an image (H,W,3): of the encoder, of what a search begins with, of a pass of decoder and prior, and of one with
    slopes."""
    grid = search(base.tokenizer, base.prior, x, LMBDA, 0)
    h, w = grid.shape
    tile = tiles.fitting(base.prior.grid_size, (h, w))

    def begin() -> Objective:
        return Objective(base.tokenizer, base.prior, x, grid, (slice(0, h), slice(0, w)), tile, LMBDA)

    objective, found = begin(), []
    for call in (lambda: search(base.tokenizer, base.prior, x, LMBDA, 0), begin, lambda: objective.cost(grid),
                 lambda: objective.scores(grid)):  # fmt: skip
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
            call()
        found.append(sum(event.flops for event in profiler.key_averages()) / 1e9)  # of matrix products and convolutions
    return found


if __name__ == "__main__":
    cli.main("python -m bench.efforts", efforts)
