"""Trains any model of the registry: ``python -m homework.train MODEL``. See ``--help``."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from homework.core import arguments, checks, cli
from homework.tokenizers.pictures import grid_decoder
from homework.training import distributed, loop

MOST_EPOCHS = 1e9
MOST_SHARDS = 64  # each is an open file, or a copy on disk


@arguments.configured  # inside, config is all that was given, by name
def train(model: str | Path, *, epochs: float = 5, batch_size: int = 16, accumulate: int = 1, lr: float | None = None,
          lr_step: int | None = None, lr_factor: float = 0.5, warmup: int | None = None, weight_decay: float = 0.01,
          clip: float = 1.0, ema: float = 0.999, seed: int = 0, augment: bool = True, data: str | Path = "data",
          dataset: str | None = None, binarize: float | str | None = None, coarse: str | Path | None = None,
          image_size: str | None = None, limit: int | None = None, skip_bad: bool = False, shuffle_shards: int | None = None,
          validate_every: int | None = None, save_every: float = 10, keep_every: int | None = None, resume: bool = False,
          config: str | Path | None = None,
          init: str | Path | None = None, inputs: str = "embedding", output: str | Path | None = None,
          tokenizer: str | Path = "homework/BSQPatchAutoEncoder.pth", device: str = "auto", precision: str = "auto",
          compile: bool = False, fsdp: bool = False, name: str | None = None, timeout: float = distributed.TIMEOUT,
          **options: Any) -> None:  # fmt: skip
    """Trains a model. Writes logs/{name}/, checkpoints/{name}.pth and, after every validation, a copy
    homework/{Model}.pth, which all commands prefer to the pretrained model of the same name.

    Any argument of the model's constructor is an option too, as in --codebook_bits 12. Run it under torchrun to train
    on several processes. Ctrl-C saves before it stops.

    Examples:
        python -m homework.train PatchAutoEncoder --limit 2000 --epochs 1
        python -m homework.train BSQPatchAutoEncoder --data mine --codebook_bits 12 --output mine/bsq.pth

    Args:
        model: a model's name, or the path of a checkpoint to continue from with a new schedule.
        epochs: passes over the training data; may be a fraction.
        batch_size: images or grids per step, on each process.
        accumulate: batches whose gradients are averaged for one update of the weights.
        lr: peak learning rate of AdamW; by default the model's own (its learning_rate), or 1e-3.
        lr_step: multiply the rate by lr_factor every so many updates, in place of the cosine.
        lr_factor: see lr_step; above 0 and at most 1.
        warmup: updates of linear warm-up, before a cosine to a hundredth of the peak; by default the model's own, or 100.
        weight_decay: of AdamW; applies to matrices alone.
        clip: largest L2 norm of the gradient.
        ema: decay of the moving average of the weights, which is what is evaluated and saved; 0 for none.
        seed: of the weights, the order of the data and all random draws.
        augment: mirror images at random; token grids stay as they are, except with --binarize sample.
        data: folder with train/ and valid/, with tokenized_train.pth and tokenized_valid.pth, or with mnist/; or WebDataset
            shards, as in 'data/train-{000..999}.tar::data/valid-000.tar', which are read as they are trained on.
        dataset: images, tokens, mnist (grids of binary pixels), mnist_images, or tokenized_images (tokens that tokenize
            --prior found, and their images, for the checkpoint of their tokenizer); by default the model's own kind.
        binarize: of mnist: how bright a pixel must be to count as ink, at least 0 (by default: not quite black) and below 1;
            or "sample" for ink with a probability of its brightness, drawn afresh each time.
        coarse: of multiscale: the folder with the tokens of the coarser grids; --data has those of the finer ones. If
            --tokenizer, which made the finer ones, is residual: the folders of all coarser grids, with commas.
        image_size: HEIGHTxWIDTH in pixels, to resize and crop images to.
        limit: how many training and validation samples to use at most; all by default.
        skip_bad: leave out images that are damaged or of another size than most, of shards than the first, and name them at
            the end; they are an error by default.
        shuffle_shards: of shards, how many are open at a time, whose images are shuffled together; 4 by default.
        validate_every: updates between validations; once an epoch by default.
        save_every: minutes between saves of all that --resume needs.
        keep_every: keep a checkpoint of every so many updates, checkpoints/{name}_{update}.pth.
        resume: continue exactly where the run of this name stopped, or the run of this checkpoint, or this model's latest
            unfinished one. Its data must be the same, and so must its options but for save_every, output, device,
            tokenizer, timeout and fsdp; the number of processes need not be. torchrun --max-restarts resumes by itself.
        config: a JSON file with any of these options by name; those on the command line win.
        init: a checkpoint of any model, from which to take all weights whose name and shape fit the new model's.
        inputs: of priors: "embedding" learns a vector for each token; "codes" reads the tokenizer's (tokenize --codes).
        output: the copy of the latest checkpoint that was validated, homework/{Model}.pth by default.
        tokenizer: a checkpoint, or a model's name, that decodes token grids for TensorBoard's pictures, if there is one; an
            error if it has another number of codes than there are tokens, or cannot decode such grids.
        device: auto, cpu, cuda or mps.
        precision: float32 or bfloat16 (by autocast); auto is bfloat16 on CUDA, else float32. CPUs with AVX-512 BF16 or AMX
            take half the time in bfloat16 or less, others many times as long.
        compile: torch.compile the loss, for CUDA.
        fsdp: share weights, gradients and optimizer out among the processes, for a model that fits none of them whole.
        name: of the run, by default {date}_{Model}; --resume finds a run with a name of its own by that.
        timeout: seconds that a process waits for the others, under torchrun, before it gives up.
        options: arguments of the model's constructor.
    """
    model, data, tokenizer, device = str(model), str(data), str(tokenizer), str(device)  # plain data, for checkpoints
    init, output, coarse, name = (path if path is None else str(path) for path in (init, output, coarse, name))
    options = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    settings = {k: v for k, v in locals().items() if k not in ("resume", "config", "options")} | {"options": options}
    check(settings | {"resume": resume})
    assert isinstance(config, dict)  # by its decorator
    if "lr_factor" in config and not lr_step and not resume:
        raise ValueError("--lr_factor is for --lr_step, without which the rate falls as a cosine; give both, or neither.")
    given = {k: v for k, v in (settings | options).items() if k in config}
    loop.train(settings, given, resume, partial(grid_decoder, required="tokenizer" in config))


def check(settings: dict) -> None:
    """ValueError, naming the option and what it may be, for settings that make no sense."""

    def given(*names: str) -> dict:  # these settings as options, except those that were left out and have no default
        may_lack = ("limit", "warmup", "lr", "lr_step", "keep_every", "validate_every", "shuffle_shards")
        return {f"--{name}": settings[name] for name in names if settings[name] is not None or name not in may_lack}

    checks.integer(1, **given("batch_size", "accumulate", "limit", "validate_every", "lr_step", "keep_every"))
    checks.integer(0, **given("warmup"))
    checks.integer(1, MOST_SHARDS, **given("shuffle_shards"))
    cli.check_seed(settings["seed"])
    checks.require(f"a number above 0 and at most {MOST_EPOCHS:.0e}", lambda v: checks.is_number(v) and 0 < v <= MOST_EPOCHS,
                   given("epochs"))  # fmt: skip
    checks.positive(**given("lr", "clip", "save_every"))
    checks.require("a number of seconds above 0 and at most 1e6", lambda v: checks.is_number(v) and 0 < v <= 1e6,
                   given("timeout"))  # fmt: skip
    checks.fraction(**given("ema", "weight_decay"))
    checks.boolean(**given("augment", "skip_bad", "resume", "compile", "fsdp"))
    checks.require("above 0 and at most 1", lambda v: checks.is_number(v) and 0 < v <= 1, given("lr_factor"))
    checks.choice(("auto", "float32", "bfloat16"), **given("precision"))
    checks.require("embedding or codes", lambda v: v in ("embedding", "codes"), given("inputs"))
    if settings["name"] is not None and not re.fullmatch(r"\w[\w.-]*(?<!\.state)", settings["name"]):
        raise ValueError(f"--name is {settings['name']!r}, but must be of letters, digits, _, - and ., not ending in "
                         ".state, as it names files.")  # fmt: skip
    texts = ("data", "dataset", "coarse", "init", "output", "tokenizer")
    checks.require("a text that is not empty", lambda v: v != "", {f"--{option}": settings[option] for option in texts})
    if settings["output"]:
        cli.check_output(settings["output"], "--output")
    if settings["init"] and settings["model"].endswith(".pth") and not settings["resume"]:
        raise ValueError("--init is for a new model; a checkpoint in place of the model's name brings all weights.")


if __name__ == "__main__":
    cli.main("python -m homework.train", train)
