"""Shows on one page what the models do: ``python -m homework.demo`` writes demo/index.html. See ``--help``."""

from pathlib import Path

import numpy as np

from homework.core import checkpoint, checks, cli, devices, files
from homework.datasets.image_files import image_paths
from homework.datasets.images import ImageDataset
from homework.evaluation import pages, pictures, walkthrough
from homework.priors.pairs import SHIPPED, load_cascade, load_pair
from homework.tokenizers.base import AutoEncoder

SAMPLES = "data/sample"


def demo(*, out: str = "demo", images: str = SAMPLES, n_generate: int = 8, seed: int = 0, limit: int = 32,
         image_size: str | None = None, autoencoder: str = "PatchAutoEncoder", tokenizer: str = "BSQPatchAutoEncoder",
         autoregressive: str = "AutoregressiveModel", cascade: str = SHIPPED, device: str = "auto") -> None:  # fmt: skip
    """Reconstructs images, tokenizes, compresses and decompresses them, generates new ones, and writes a page about it.

    Examples:
        python -m homework.demo
        python -m homework.demo --images my_pictures --image_size 100x150 --out shown

    Args:
        out: the folder for index.html and its pictures; made if it is not there.
        images: the images to show: a file or a folder.
        n_generate: how many images to generate.
        seed: of the draws; the same seed gives the same images.
        limit: the largest number of images to show, the first ones by name.
        image_size: HEIGHTxWIDTH in pixels, to which images are scaled and cropped; as they are by default.
        autoencoder: checkpoint or name of an auto-encoder.
        tokenizer: checkpoint or name of a tokenizer.
        autoregressive: checkpoint or name of a prior over that tokenizer's grids.
        cascade: the JSON file of a cascade, which generates images from coarse to fine; by default the pretrained one.
        device: auto, cpu, cuda or mps.
    """
    cli.at_least(1, n_generate=n_generate, limit=limit)
    cli.check_seed(seed)
    pages.require("jinja2")
    if images == SAMPLES and not Path(images).is_dir():
        raise FileNotFoundError(f"There are no sample images here, in {images}; name images of your own by --images.")
    pair = tokenizer, autoregressive
    folder, device, timed = Path(out), devices.pick_device(device), walkthrough.Stopwatch()

    files.check_writable(folder / "index.html")  # before the work

    def load() -> tuple:
        coder, prior = load_pair(*pair, device)
        ae = checkpoint.load(autoencoder).to(device)
        if not isinstance(ae, AutoEncoder):
            raise checkpoint.wrong_model(autoencoder, type(ae).__name__, "an auto-encoder")
        data = ImageDataset(image_paths(images)[:limit], cli.parse_image_size(image_size))
        return ae, coder, prior, load_cascade(cascade, device), data

    *models, scales, data = timed("load models and images", load)
    x = data.batch(np.arange(len(data)), device)  # (B,H,W,3)
    results, shown, compressed = walkthrough.walk_through(*models, x, n_generate, seed, timed)
    refined, pictures_of_scales = walkthrough.refine(scales, seed, timed)
    results, shown = results | refined, shown | pictures_of_scales
    for name, several in shown.items():
        for i, picture in enumerate(several.cpu()):
            pictures.save_picture(picture, folder / f"{name}_{i}.png")
    for i, file in enumerate(compressed):
        with files.replacing(folder / f"compressed_{i}.hwi") as path:
            path.write_bytes(file)
    results |= walkthrough.file_columns(results, data.names) | {"seconds": timed}
    pages.write_page("demo.html", "Images, tokens and back", results, folder / "index.html")  # last: what it shows is there
    print(f"{folder / 'index.html'}: {checks.count(len(x), 'image')}, and {n_generate} generated; open it in a browser.")


if __name__ == "__main__":
    cli.main("python -m homework.demo", demo)
