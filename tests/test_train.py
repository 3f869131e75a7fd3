"""``python -m homework.train``: what it writes, that a resumed run is the uninterrupted one, and how it fails."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GRID, SIZE, TINY, K, build, file_size_limit, files, run, sentence, skip_if_ignored
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import homework
from homework import TokenDataset
from homework.core import checkpoint, cli, devices, registry
from homework.core.files import read, write
from homework.datasets.kinds import DATASETS
from homework.train import train as train_function
from homework.training import resume
from homework.training.loop import LOG_EVERY, Run
from homework.training.settings import load_matching_weights

AE, BSQ, PRIOR = "PatchAutoEncoder", "BSQPatchAutoEncoder", "AutoregressiveModel"
DATE = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
# 24 training samples: 12 updates an epoch with batches of 2
INTERRUPT = """
import os, signal, sys
from homework.core import cli
from homework.train import train
from homework.training.loop import Run

at, name = int(sys.argv.pop(1)), sys.argv.pop(1)
step = Run.step

def interrupted(self):
    if self.update == at:
        os.kill(os.getpid(), getattr(signal, name))
    return step(self)

Run.step = interrupted
cli.main("train", train)
"""


@pytest.fixture
def arguments(data):
    """``arguments(model, option=value, ...)``: a short training of a tiny model, as a command line."""

    def make(model: str, **options) -> list[str]:
        own = {k: v for k, v in TINY.get(model, {}).items() if k not in ("n_tokens", "height", "width")}
        common = {"data": data, "batch_size": 2, "epochs": 1, "device": "cpu", "warmup": 4}
        return [model, *(f"--{k}={v}" for k, v in (common | own | options).items())]

    return make


@pytest.fixture
def train(command, arguments, tmp_path, monkeypatch):
    """Runs that in this process, in ``tmp_path`` or the folder ``cwd``."""

    def call(model: str, *more: str, cwd: Path = tmp_path, **options) -> SimpleNamespace:
        cwd.mkdir(exist_ok=True)
        monkeypatch.chdir(cwd)
        typed = [model, *(f"--{k}={v}" for k, v in options.items())] if "--resume" in more else arguments(model, **options)
        return command("train", *typed, *more)

    return call


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def weights(folder: Path, model: str) -> dict[str, torch.Tensor]:
    """Of the one run in ``folder``."""
    return checkpoint.load(only(folder, f"checkpoints/{'[0-9]' * 4}*_{model}.pth"), model).state_dict()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that the one run in ``folder`` logged, but for the speed."""
    events = EventAccumulator(str(only(folder, "logs/*"))).Reload()
    names = [n for n in events.Tags()["scalars"] if n != "train/images_per_second"]
    return {n: [(e.step, e.value) for e in events.Scalars(n)] for n in names}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


# --- what is written ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [AE, BSQ, PRIOR])
def test_a_run_writes_a_log_and_two_checkpoints(train, tmp_path, model):
    done = train(model)
    assert done.returncode == 0, done.stderr
    written = sorted(files(tmp_path))
    assert len(written) == 3, written
    assert re.fullmatch(rf"checkpoints/{DATE}_{model}\.pth", written[0])
    assert written[1] == f"homework/{model}.pth"
    assert re.fullmatch(rf"logs/{DATE}_{model}/events\.out\.tfevents\..*", written[2])
    assert Path(written[0]).stem == Path(written[2]).parent.name

    full, half = checkpoint.load(tmp_path / written[0], model), checkpoint.load(tmp_path / written[1], model)
    assert TINY[model].items() <= full.config.items() and half.config == full.config
    for k, v in full.state_dict().items():
        assert torch.allclose(half.state_dict()[k], v, rtol=1e-3, atol=1e-6), k
    assert full.meta["update"] == 12 and "homework.train" in full.meta["command"] and full.meta["valid"]["loss"] > 0

    events = EventAccumulator(str(tmp_path / written[2])).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "valid/loss", "train/learning_rate", "train/images_per_second"} <= scalars
    assert [e.step for e in events.Scalars("train/loss")] == [10, 12]  # the last updates are logged, too
    assert [e.step for e in events.Scalars("valid/loss")] == [12]
    assert events.Scalars("valid/loss")[0].value == pytest.approx(full.meta["valid"]["loss"])
    shown = {AE: {"input", "reconstruction"}, BSQ: {"input", "reconstruction"}, PRIOR: {"data", "samples"}}
    assert shown[model] <= set(events.Tags()["images"])
    (text,) = (t for t in events.Tags()["tensors"] if "configuration" in t)
    shown = events.Tensors(text)[0].tensor_proto.string_val[0].decode()
    assert '"batch_size": 2' in shown and '"seed": 0' in shown and str(next(iter(TINY[model]))) in shown


def test_the_validation_loss_is_that_of_the_saved_model(train, tmp_path, data):
    train(PRIOR)
    model = checkpoint.load(tmp_path / f"homework/{PRIOR}.pth")
    loss = model.loss(TokenDataset("valid", root=data).batch(torch.arange(8)))["loss"].item()
    assert loss == pytest.approx(model.meta["valid"]["loss"], rel=1e-2)  # of the copy in half precision


def test_training_lowers_the_loss(train, tmp_path):
    assert train(PRIOR, epochs=15, lr=1e-2, d_latent=16).returncode == 0
    losses = [v for _, v in curves(tmp_path)["train/loss"]]
    assert losses[-1] < 0.75 * losses[0] and losses[0] < 1.5 * math.log(K)
    valid = curves(tmp_path)["valid/loss"]
    assert [s for s, _ in valid] == list(range(12, 181, 12)) and valid[-1][1] < valid[0][1]


def test_samples_of_a_prior_are_shown_by_the_tokenizer_if_there_is_one(train, tmp_path):
    checkpoint.save(build(BSQ), tmp_path / "t.pth")
    for i, tokenizer in enumerate(("none.pth", tmp_path / "t.pth")):
        assert train(PRIOR, cwd=tmp_path / str(i), tokenizer=tokenizer).returncode == 0
        events = EventAccumulator(str(only(tmp_path / str(i), "logs/*"))).Reload()
        image = events.Images("samples")[0]
        assert (image.height, image.width) >= (GRID, SIZE)[i] and (image.height % SIZE[0] == 0) == (i == 1)


MISFITS = {
    "holds a PatchAutoEncoder, but no tokenizer": (AE, {}),
    "has 32 codes, but this training is on 16": (BSQ, {"codebook_bits": 5}),
    "cannot decode grids of 4x6 tokens (ValueError: This VQVAE has one code for an image of 20x30": ("VQVAE", {}),
}


@pytest.mark.parametrize("why", MISFITS)
def test_a_tokenizer_that_cannot_decode_the_tokens_is_refused_before_the_training(train, tmp_path, why):
    name, options = MISFITS[why]
    checkpoint.save(build(name, **options), tmp_path / "t.pth")
    for model in PRIOR, "GatedPixelCNN":
        error = sentence(train(model, tokenizer="t.pth"))
        assert f"--tokenizer is t.pth, which {why}" in error and files(tmp_path) == {"t.pth"}


@pytest.mark.parametrize("error", [NotImplementedError(), RuntimeError("no"), AttributeError("decode")])
def test_a_third_partys_tokenizer_without_a_decoder_is_refused(train, tmp_path, monkeypatch, error):
    def fail(self, index):
        raise error

    checkpoint.save(build(BSQ), tmp_path / "t.pth")
    monkeypatch.setattr(registry.model_class(BSQ), "decode_index", fail)
    assert f"cannot decode grids of 4x6 tokens ({type(error).__name__}" in sentence(train(PRIOR, tokenizer="t.pth"))


def test_the_default_tokenizer_is_left_out_of_the_pictures_where_it_does_not_fit(train, tmp_path, small):
    """And a tokenizer of images of another size serves as well."""
    assert train("PixelCNN", data=small, epochs=0.1).returncode == 0
    checkpoint.save(build(BSQ, patch_size=7), tmp_path / "t.pth")
    done = train(PRIOR, epochs=0.1, tokenizer="t.pth", cwd=tmp_path / "run")
    assert done.returncode == 0 and "There is no checkpoint t.pth, so TensorBoard shows shades" in done.stderr
    assert train(PRIOR, epochs=0.1, tokenizer="../t.pth", cwd=tmp_path / "other").returncode == 0
    events = EventAccumulator(str(only(tmp_path / "other", "logs/*"))).Reload()
    assert events.Images("samples")[0].height % 28 == 0


def test_a_damaged_tokenizer_is_named_before_the_training(train, tmp_path):
    (tmp_path / "t.pth").write_bytes(b"junk")
    assert "t.pth" in sentence(train(PRIOR, tokenizer="t.pth")) and files(tmp_path) == {"t.pth"}
    assert train(AE, tokenizer="t.pth").returncode == 0  # which shows no grids


def test_pictures_that_fail_cost_nothing_that_was_trained(train, tmp_path, monkeypatch):
    def fail(self, batch):
        raise ValueError("no pictures today")

    with monkeypatch.context() as patch:
        patch.setattr(registry.model_class(AE), "images", fail)
        assert sentence(train(AE, epochs=2)) == "no pictures today"
    assert read(only(tmp_path, "checkpoints/*.state.pth"))["update"] == 12
    assert checkpoint.load(tmp_path / f"homework/{AE}.pth").meta["update"] == 12
    assert train(AE, "--resume").returncode == 0


def test_the_progress_bar_says_what_it_is_of(train):
    assert f"training {AE}:" in train(AE).stderr


def test_a_limit_is_passed_to_data_that_can_do_with_less(call, monkeypatch):
    opened = []

    class Fewer(DATASETS["images"]):
        def __init__(self, split="train", image_size=None, root="data", limit=None):
            opened.append((split, limit))
            super().__init__(split, image_size, root)

    monkeypatch.setitem(DATASETS, "images", Fewer)
    call(AE, limit=5)
    assert opened == [("train", 5), ("valid", 5)]


def test_image_folders_of_another_size_are_scaled(train, tmp_path, data):
    assert train(AE, image_size="15x15", epochs=0.2).returncode == 0
    events = EventAccumulator(str(only(tmp_path, "logs/*"))).Reload()
    assert events.Images("input")[0].height % 15 == 0


def test_an_image_size_for_a_prior_is_ignored_or_refused_in_a_sentence(train):
    done = train(PRIOR, image_size="20x30")
    assert done.returncode == 0 or sentence(done)


def test_a_limit_takes_the_first_samples_only(train, tmp_path):
    assert train(AE, limit=5).returncode == 0
    assert checkpoint.load(tmp_path / f"homework/{AE}.pth").meta["update"] == 2
    events = EventAccumulator(str(only(tmp_path, "logs/*"))).Reload()
    assert [e.step for e in events.Scalars("valid/loss")] == [2]


def test_half_an_epoch_is_half_as_many_updates(train, tmp_path):
    assert train(AE, epochs=0.5).returncode == 0
    assert checkpoint.load(tmp_path / f"homework/{AE}.pth").meta["update"] == 6


# --- the same run, however it is cut --------------------------------------------------------------------------------------


def check_same_run(a: Path, b: Path, model: str) -> None:
    """All logged losses and the final weights of the one run in each folder are equal, bit for bit."""
    one, two = curves(a), curves(b)
    assert one.keys() == two.keys()
    for name in one:
        assert one[name] == two[name], name
    assert same(weights(a, model), weights(b, model))


LONG = {"epochs": 10, "accumulate": 2, "validate_every": 7, "ema": 0.9}  # 60 updates


def test_a_run_that_was_killed_resumes_as_if_it_had_not_been(train, arguments, tmp_path):
    """kill -9 at update 25, between two saves (the last one at 21) and between two points of the curves."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(AE, cwd=whole, **LONG).returncode == 0
    cut.mkdir()
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    killed = run(tmp_path / "interrupt.py", 25, "SIGKILL", *arguments(AE, **LONG), cwd=cut)
    assert killed.returncode == -signal.SIGKILL
    state = only(cut, "checkpoints/*.state.pth")
    assert read(state)["update"] == 21 and checkpoint.load(cut / f"homework/{AE}.pth").meta["update"] == 21
    resumed = run("-m", "homework.train", AE, "--resume", cwd=cut)
    assert resumed.returncode == 0, resumed.stderr
    check_same_run(whole, cut, AE)
    assert [s for s, _ in curves(cut)["train/loss"]] == list(range(LOG_EVERY, 61, LOG_EVERY))
    assert not state.exists() and len(list(cut.glob("checkpoints/*"))) == 1  # a finished run leaves its model alone
    assert "--resume" in sentence(train(AE, "--resume", cwd=cut))  # and nothing to resume


def stopped_run(train, monkeypatch, model: str, update: int, sig: str = "SIGINT", **options) -> SimpleNamespace:
    """A training that gets a signal, of Ctrl-C if no other is named, at that update."""
    step = Run.step

    def interrupted(self):
        if self.update == update:
            os.kill(os.getpid(), getattr(signal, sig))
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", interrupted)
        return train(model, **options)


@pytest.mark.parametrize("sig, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_run_that_was_stopped_resumes_as_if_it_had_not_been(train, tmp_path, monkeypatch, sig, code):
    """Ctrl-C saves first. With dropout, whose draws must continue too."""
    skip_if_ignored(sig)
    whole, cut, options = tmp_path / "whole", tmp_path / "cut", LONG | {"dropout": 0.3, "seed": 3}
    assert train(PRIOR, cwd=whole, **options).returncode == 0
    handler = signal.getsignal(signal.SIGINT)
    stopped = stopped_run(train, monkeypatch, PRIOR, 25, sig, cwd=cut, **options)
    assert stopped.returncode == code and "--resume" in stopped.stderr and "Traceback" not in stopped.stderr
    assert signal.getsignal(signal.SIGINT) is handler  # as it was before
    assert read(only(cut, "checkpoints/*.state.pth"))["update"] == 26
    torch.manual_seed(99)  # nothing may hang on the state of the global generator
    resumed = train(only(cut, "checkpoints/*_AutoregressiveModel.pth"), "--resume", cwd=cut)  # by its path this time
    assert resumed.returncode == 0, resumed.stderr
    path = only(cut, "checkpoints/*_AutoregressiveModel.pth").relative_to(cut)
    assert f"Resuming {path} at update 26 of" in resumed.stderr
    check_same_run(whole, cut, PRIOR)


def test_bad_images_are_named_when_a_training_ends_or_stops(train, data, tmp_path, monkeypatch):
    bad = shutil.copytree(data, tmp_path / "bad")
    for name in "train/003.jpg", "valid/002.jpg":
        (bad / name).write_bytes(b"no image")
    assert "train/003.jpg cannot be read" in sentence(train(AE, data=bad))
    options = {"data": bad, "validate_every": 2}
    done, stopped = train(AE, "--skip_bad", **options), stopped_run(train, monkeypatch, AE, 3, **options, skip_bad="true")
    assert (done.returncode, stopped.returncode) == (0, 130), stopped.stderr
    for one in done, stopped:
        _, _, said = one.stderr.partition("Left out:\n")
        assert [line.split()[0] for line in said.splitlines()[:2]] == [f"{bad}/train/003.jpg", f"{bad}/valid/002.jpg"]
        assert one.stderr.count("003.jpg") == 1


def test_a_resumed_run_takes_its_own_options_and_no_others(train, data, tmp_path, monkeypatch):
    assert stopped_run(train, monkeypatch, AE, 3, lr=2e-3, validate_every=1, ema=0.9).returncode == 130
    before = files(tmp_path)
    for options in {"lr": 1e-3}, {"latent_dim": 99}, {"data": "elsewhere"}, {"epochs": 9}, {"epochs": 5}, {"ema": 0.999}:
        error = sentence(train(AE, "--resume", **options))  # the last two are defaults, but not this run's
        assert f"--{next(iter(options))} differs" in error and files(tmp_path) == before
    assert "--no_such" in sentence(train(AE, "--resume", no_such=1)) and files(tmp_path) == before
    same = {"lr": 0.002, "data": data, "save_every": 1, "output": "other.pth", "device": "cpu"}  # or they may be others
    assert train(AE, "--resume", **same).returncode == 0 and checkpoint.load(tmp_path / "other.pth").meta["update"] == 12


def test_what_may_be_overridden_is_what_the_run_began_with_unless_it_is_given(train, tmp_path, monkeypatch):
    """An option counts as given if it equals its default, too; a run is stopped and resumed three times."""
    checkpoint.save(build(BSQ), tmp_path / "t.pth")
    own = {"save_every": 77.0, "output": "mine.pth", "device": "cpu", "tokenizer": "t.pth"}
    assert stopped_run(train, monkeypatch, PRIOR, 2, **own).returncode == 130

    def resumed(*words: str) -> dict:
        runs, fit = [], Run.fit
        with monkeypatch.context() as patch:
            patch.setattr(Run, "fit", lambda self: (runs.append(self), fit(self)))
            stopped_run(lambda model: train(model, "--resume", *words), monkeypatch, PRIOR, resumed.at)
        resumed.at += 2
        return {option: runs[0].settings[option] for option in own}

    resumed.at = 4
    assert resumed() == own
    given = {"save_every": 10, "device": "auto", "tokenizer": "none.pth"}  # of which two are defaults
    assert resumed(*(f"--{option}={value}" for option, value in given.items())) == own | given
    assert resumed() == own | given


def test_a_run_on_a_device_that_this_machine_lacks_resumes_on_another(train, tmp_path, monkeypatch):
    assert stopped_run(train, monkeypatch, AE, 3).returncode == 130
    path = only(tmp_path, "checkpoints/*.state.pth")
    state = read(path)
    write(state | {"settings": state["settings"] | {"device": "xla"}}, path)
    for device in "xla", "meta":
        assert f"The device '{device}' cannot be used here" in sentence(train(AE, "--resume", device=device))
    done = train(AE, "--resume")
    assert done.returncode == 0 and "was on the device xla, which cannot be used here; it resumes on " in done.stderr


def test_the_shipped_copy_is_replaced_by_what_has_been_validated_alone(train, tmp_path, monkeypatch):
    assert stopped_run(train, monkeypatch, AE, 3).returncode == 130
    assert only(tmp_path, "checkpoints/*.state.pth") and not Path("homework").exists()
    done = train(AE, "--resume")
    copy = Path(f"homework/{AE}.pth")
    assert done.returncode == 0 and f"in float16 as {copy}" in done.stdout and copy.is_file()


def test_seeds(train, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train(BSQ, cwd=tmp_path / name, seed=seed).returncode == 0
    a, b, c = (weights(tmp_path / name, BSQ) for name in "abc")
    assert same(a, b) and not same(a, c)


def test_two_processes_are_one_with_twice_the_batch(train, arguments, tmp_path):
    """Stopped in the middle and resumed there."""
    one, two, options = tmp_path / "one", tmp_path / "two", {"augment": False, "epochs": 5, "validate_every": 15, "ema": 0.9}
    assert train(BSQ, cwd=one, batch_size=4, **options).returncode == 0  # 30 updates
    two.mkdir()
    (tmp_path / "interrupt.py").write_text(INTERRUPT)
    stopped = run(tmp_path / "interrupt.py", 13, "SIGINT", *arguments(BSQ, **options), cwd=two, processes=2)
    assert stopped.returncode != 0 and "Saved at update 14 of 30" in stopped.stderr, stopped.stderr
    assert stopped.stderr.count("Saved at update") == 1  # by the first process alone
    resumed = run("-m", "homework.train", BSQ, "--resume", cwd=two, processes=2)
    assert resumed.returncode == 0, resumed.stderr

    a, b = curves(one), curves(two)
    assert a.keys() == b.keys()
    for name in ("valid/loss", "valid/mse", "train/learning_rate"):
        assert [s for s, _ in a[name]] == [s for s, _ in b[name]]
        assert [v for _, v in a[name]] == pytest.approx([v for _, v in b[name]], rel=2e-2), name
    assert a["valid/loss"][0][1] == pytest.approx(b["valid/loss"][0][1], rel=1e-3)  # before rounding errors have grown
    mine, theirs = weights(one, BSQ), weights(two, BSQ)
    for k in mine:
        assert (mine[k] - theirs[k]).abs().mean() < 2e-3, k  # all of them moved by some 1e-2
    assert len(list(two.glob("logs/*/*"))) == 2 and len(list(two.glob("logs/*"))) == 1  # one file for each start
    assert len(list(two.glob("checkpoints/*"))) == 1


def test_accumulated_batches_are_one_large_batch(train, tmp_path):
    options = {"epochs": 3, "validate_every": 6, "ema": 0}
    assert train(PRIOR, cwd=tmp_path / "a", batch_size=4, **options).returncode == 0
    assert train(PRIOR, cwd=tmp_path / "b", batch_size=1, accumulate=4, **options).returncode == 0
    a, b = curves(tmp_path / "a"), curves(tmp_path / "b")
    assert a["train/learning_rate"] == b["train/learning_rate"]
    for name in ("train/loss", "valid/loss"):
        assert [v for _, v in a[name]] == pytest.approx([v for _, v in b[name]], rel=1e-3), name


# --- as a function --------------------------------------------------------------------------------------------------------


@pytest.fixture
def call(data, tmp_path, monkeypatch):
    """``call(model, option=value, ...)``: a short training of a tiny model by the function, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    common = {"data": data, "batch_size": 2, "epochs": 0.25, "device": "cpu", "warmup": 4}
    return lambda model, **options: train_function(model, **common | TINY.get(model, {}) | options)


def global_state() -> list:
    handlers = [signal.getsignal(sig) for sig in (signal.SIGINT, signal.SIGTERM)]
    precision = torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.is_grad_enabled()
    draws = random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    return [handlers, threading.excepthook, precision, torch.get_num_threads(), draws]


@pytest.mark.parametrize("end", ["finished", "stopped", "refused"])
def test_it_leaves_the_global_state_as_it_was(call, monkeypatch, end):
    torch.manual_seed(5)
    before = global_state()
    if end == "finished":
        call(BSQ)
    elif end == "stopped":
        with pytest.raises(KeyboardInterrupt):
            stopped_run(lambda model: call(model), monkeypatch, BSQ, 1)
    else:
        with pytest.raises(ValueError):
            call(BSQ, batch_size=1000)
    assert global_state() == before


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_generators_that_it_seeds_are_as_they_were_and_no_others_are_seeded(monkeypatch, kind):
    """Also those of devices that are not started yet."""
    states, device = {"cuda": 3, "mps": 4}, torch.device(kind)
    for module, names in (torch.cuda, ("cuda", "manual_seed_all")), (torch.mps, ("mps", "manual_seed")):
        monkeypatch.setattr(module, names[1], lambda seed, name=names[0]: states.update({name: seed}))
        monkeypatch.setattr(module, "get_rng_state", lambda *_, name=names[0]: states[name])
        monkeypatch.setattr(module, "set_rng_state", lambda state, *_, name=names[0]: states.update({name: state}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    before = torch.get_rng_state()
    with devices.keeping_generators(device):
        devices.seed_generators(7, device)
        assert states == {"cuda": 3, "mps": 4} | ({} if kind == "cpu" else {kind: 7})
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(7).get_state())
    assert states == {"cuda": 3, "mps": 4} and torch.equal(torch.get_rng_state(), before)


def test_a_training_on_the_cpu_seeds_no_other_device(call, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.mps, "manual_seed", seeded.append)
    call(AE)
    assert seeded == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_training_on_cuda_leaves_its_generator_alone(call):
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    call(AE, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_command_does_too(train):
    before = global_state()
    assert train(AE, epochs=0.1).returncode == 0
    sentence(train(AE, no_such=1))
    assert global_state() == before


def test_it_runs_in_a_thread(call, tmp_path):
    before = global_state()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call, AE).result()
    assert global_state() == before and checkpoint.load(tmp_path / f"homework/{AE}.pth").meta["update"] == 3


def test_paths_may_be_paths(call, data, monkeypatch, tmp_path):
    options = {"validate_every": 1, "output": Path("out") / "m.pth", "epochs": 1, "tokenizer": Path("t.pth")}
    checkpoint.save(build(PRIOR), "init.pth")
    with pytest.raises(KeyboardInterrupt):
        stopped_run(call, monkeypatch, PRIOR, 3, init=Path("init.pth"), **options)
    path = only(tmp_path, "checkpoints/*_AutoregressiveModel.pth")
    train_function(path, resume=True, data=data, init=Path("init.pth"), output=Path("out2") / "m.pth")
    assert checkpoint.load(Path("out2") / "m.pth").meta["update"] == 12 and Path("out/m.pth").is_file()
    train_function(Path("out2") / "m.pth", data=data, device="cpu", epochs=0.25, batch_size=2)
    assert checkpoint.load(f"homework/{PRIOR}.pth").meta["update"] == 3


def test_a_registered_model_is_trained_like_any_other(call, monkeypatch):
    monkeypatch.setattr(registry, "MODELS", dict(registry.MODELS))

    @homework.register
    class Unigram(homework.Prior):
        def __init__(self, n_tokens: int, source: str = ""):
            super().__init__()
            self.n_tokens, self.logits = n_tokens, torch.nn.Parameter(torch.zeros(n_tokens))

        def forward(self, tokens):
            return self.logits.expand(*tokens.shape, self.n_tokens), {}

    call("Unigram", lr=0.1, source=Path("a", "b"))
    model = homework.load("Unigram")
    assert model.config["source"] == str(Path("a", "b"))  # checkpoints hold plain data
    assert type(model) is Unigram and model.n_tokens == K and model.logits.abs().max() > 0.01


# --- the copy that the commands prefer ------------------------------------------------------------------------------------


def test_the_pretrained_models_are_never_written(call, tmp_path):
    """A training leaves ./homework/{Model}.pth, which the name then means; another one can begin with either."""
    before = {path: path.read_bytes() for path in checkpoint.PRETRAINED.iterdir()}
    assert checkpoint.locate(BSQ) == checkpoint.PRETRAINED / f"{BSQ}.pth"
    call(BSQ, limit=4)
    copy = Path("homework", f"{BSQ}.pth")
    assert checkpoint.locate(BSQ) == copy and checkpoint.load(BSQ).config["codebook_bits"] == 4
    call(f"homework/{BSQ}.pth", limit=4, lr=1e-12)
    assert checkpoint.load(BSQ).meta["update"] == 1 and checkpoint.load(BSQ).config["codebook_bits"] == 4
    copy.unlink()
    call(f"homework/{BSQ}.pth", limit=2, lr=1e-12)  # now the pretrained one
    assert checkpoint.load(copy).config == checkpoint.load(checkpoint.PRETRAINED / f"{BSQ}.pth").config
    assert {path: path.read_bytes() for path in checkpoint.PRETRAINED.iterdir()} == before


def test_samples_are_shown_by_the_tokenizer_that_its_name_means(call, tmp_path):
    checkpoint.save(build(BSQ), f"homework/{BSQ}.pth")
    call(PRIOR, tokenizer=BSQ)
    events = EventAccumulator(str(only(tmp_path, "logs/*"))).Reload()
    assert events.Images("samples")[0].height % SIZE[0] == 0


# --- the optimization -----------------------------------------------------------------------------------------------------


def rates(lr=1.0, warmup=10, updates=110, lr_step=None, lr_factor=0.5) -> list[float]:
    settings = {"lr": lr, "warmup": warmup, "lr_step": lr_step, "lr_factor": lr_factor}
    one = {"settings": settings, "updates": updates}
    return [Run.learning_rate(SimpleNamespace(**one, update=u)) for u in range(updates + 1)]


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    r = rates()
    assert r[:10] == pytest.approx([0.1 * (u + 1) for u in range(10)])
    assert r[10] == 1 and r[60] == pytest.approx(0.505) and r[110] == pytest.approx(0.01)
    assert r[35] == pytest.approx(0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi / 4)))
    assert rates(lr=3.0) == pytest.approx([3 * v for v in r])


def test_stairs_in_place_of_the_cosine():
    r = rates(lr=2.0, warmup=4, updates=30, lr_step=10, lr_factor=0.1)
    assert r[:4] == pytest.approx([0.5, 1, 1.5, 2]) and r[4:10] == [2] * 6
    assert r[10:20] == pytest.approx([0.2] * 10) and r[20:30] == pytest.approx([0.02] * 10)


def test_the_learning_rate_that_is_logged_is_the_one_that_was_used(train, tmp_path):
    train(AE, lr=0.01, warmup=5, epochs=2)
    expected = rates(lr=0.01, warmup=5, updates=24)
    assert curves(tmp_path)["train/learning_rate"] == [(u, pytest.approx(expected[u - 1])) for u in (10, 20, 24)]


@pytest.mark.parametrize("warmup, updates", [(0, 5), (0, 1), (100, 1), (100, 2), (100, 7), (3, 1000)])
def test_the_learning_rate_is_never_zero_nor_above_its_peak(warmup, updates):
    r = rates(warmup=warmup, updates=updates)[:-1]
    assert all(0 < v <= 1 for v in r) and max(r) == 1


def test_the_average_follows_the_weights():
    model, average = build(AE, seed=0), build(AE, seed=1)
    for update, decay in ((0, 0.1), (5, 6 / 15), (1000, 0.9)):
        expected = [decay * a + (1 - decay) * m for a, m in zip(average.parameters(), model.parameters(), strict=True)]
        Run.update_average(SimpleNamespace(settings={"ema": 0.9}, update=update, average=average, model=model))
        assert all(torch.allclose(a, e, atol=1e-6) for a, e in zip(average.parameters(), expected, strict=True))


@pytest.mark.parametrize("ema", [0, 0.99])
def test_the_average_is_what_is_saved(train, tmp_path, monkeypatch, ema):
    runs, fit = [], Run.fit
    monkeypatch.setattr(Run, "fit", lambda self: (runs.append(self), fit(self)))
    train(AE, ema=ema)
    saved = weights(tmp_path, AE)
    assert same(saved, runs[0].average.state_dict())
    assert same(saved, runs[0].model.state_dict()) == (ema == 0)


def test_gradients_are_clipped(train, tmp_path):
    """Clipped to nearly nothing, they vanish in Adam's epsilon, and the weights stay."""
    train(AE, cwd=tmp_path / "a", clip=1e-13, weight_decay=0, lr=1e-2, ema=0, pca=0)
    train(AE, cwd=tmp_path / "b", clip=1.0, weight_decay=0, lr=1e-2, ema=0, pca=0)
    torch.manual_seed(0)
    start = registry.model_class(AE)(**TINY[AE]).state_dict()
    a, b = ({k: (v - start[k]).abs().max() for k, v in weights(tmp_path / c, AE).items()} for c in "ab")
    assert max(a.values()) < 1e-5 and min(b.values()) > 1e-3


def test_weight_decay_is_for_matrices_alone(train, tmp_path):
    options = {"clip": 1e-13, "lr": 0.1, "ema": 0, "warmup": 0, "pca": 0}
    train(AE, cwd=tmp_path / "a", weight_decay=0.5, **options)
    torch.manual_seed(0)
    start = registry.model_class(AE)(**TINY[AE]).state_dict()
    for k, v in weights(tmp_path / "a", AE).items():
        if v.ndim > 1:
            assert v.abs().sum() < 0.8 * start[k].abs().sum(), k
        else:
            assert torch.allclose(v, start[k], atol=1e-4), k


def test_mirroring_is_an_option(train, tmp_path):
    train(AE, cwd=tmp_path / "a")
    train(AE, cwd=tmp_path / "b", augment=False)
    assert not same(weights(tmp_path / "a", AE), weights(tmp_path / "b", AE))


def test_flags_for_graphics_cards_do_no_harm_on_the_cpu(train, tmp_path, monkeypatch):
    """Without an option precision is float32; compile (here without a C++ compiler) gives the same training."""
    compiled, compile = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: (compiled.append(m), compile(m, backend="eager"))[1])
    for name, options in ("a", {"precision": "float32"}), ("b", {}), ("c", {"compile": True}):
        done = train(BSQ, cwd=tmp_path / name, epochs=0.25, **options)
        assert done.returncode == 0, done.stderr
    assert same(weights(tmp_path / "a", BSQ), weights(tmp_path / "b", BSQ)) and len(compiled) == 1
    for k, v in weights(tmp_path / "c", BSQ).items():
        assert torch.allclose(v, weights(tmp_path / "a", BSQ)[k], atol=1e-4), k


@pytest.mark.parametrize("model", [AE, BSQ, "VQPatchAutoEncoder", PRIOR])
def test_bfloat16_trains_alike(train, tmp_path, model):
    """Also where the CPU has no instructions for it; weights stay float32, and what is measured is measured in it."""
    found = {}
    for precision in "float32", "bfloat16":
        done = train(model, cwd=tmp_path / precision, precision=precision)
        assert done.returncode == 0, done.stderr
        found[precision] = weights(tmp_path / precision, model), curves(tmp_path / precision)["valid/loss"][-1][1]
    (exact, loss), (rough, rough_loss) = found.values()
    assert not same(exact, rough) and all(v.dtype == exact[k].dtype for k, v in rough.items())
    assert rough_loss == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize(
    "ratio, precision, said",
    [(3.0, "auto", "3.0 times as fast"), (3.0, "bfloat16", ""), (0.25, "bfloat16", "4.0 times as slow"), (0.25, "auto", "")],
)
def test_the_faster_precision_is_named(train, monkeypatch, ratio, precision, said):
    monkeypatch.setattr("homework.core.devices.bfloat16_speedup", lambda: ratio)
    monkeypatch.setattr("homework.training.loop.LONG", 0)
    done = train(AE, epochs=8, precision=precision)
    assert done.returncode == 0 and said in done.stderr and ("This CPU" in done.stderr) == bool(said)


# --- continuing from a checkpoint -----------------------------------------------------------------------------------------


def test_a_checkpoint_can_be_continued_from(train, tmp_path):
    base = build(AE, seed=5)
    checkpoint.save(base, tmp_path / "base.pth")
    done = train(str(tmp_path / "base.pth"), cwd=tmp_path / "run", lr=1e-12, epochs=0.1)
    assert done.returncode == 0, done.stderr
    for k, v in weights(tmp_path / "run", AE).items():
        assert torch.allclose(v, base.state_dict()[k], atol=1e-6), k
    assert same(checkpoint.load(tmp_path / "base.pth").state_dict(), base.state_dict())  # itself stays as it is


def test_a_loss_can_be_switched_on_when_continuing(train, tmp_path):
    base = build(BSQ, seed=5)
    checkpoint.save(base, tmp_path / "base.pth")
    assert train(str(tmp_path / "base.pth"), cwd=tmp_path / "run", lr=1e-12, epochs=0.1, rate_weight=0.01).returncode == 0
    after = weights(tmp_path / "run", BSQ)
    assert all(torch.allclose(after[k], v, atol=1e-6) for k, v in base.state_dict().items())
    assert any(k.startswith("rate.") for k in after)


def test_an_option_against_the_checkpoint_is_named(train, tmp_path):
    checkpoint.save(build(AE), tmp_path / "base.pth")
    error = sentence(train(str(tmp_path / "base.pth"), latent_dim=16))
    assert "latent_dim" in error and "16" in error and "8" in error


def test_a_prior_of_other_codes_than_the_data_is_named(train, tmp_path):
    checkpoint.save(build(PRIOR, n_tokens=64), tmp_path / "base.pth")
    error = sentence(train(str(tmp_path / "base.pth")))
    assert "n_tokens" in error and "64" in error and "16" in error


@pytest.mark.parametrize("content", [None, b"", b"junk", "code", "tokens"])
def test_what_is_not_a_checkpoint_is_named(train, tmp_path, content, data):
    path = tmp_path / "base.pth"
    if content == "tokens":
        shutil.copy(data / "tokenized_train.pth", path)
    elif content == "code":
        torch.save({"model": AE, "config": {}, "state_dict": os.system}, path)
    elif content is not None:
        path.write_bytes(content)
    assert "base.pth" in sentence(train(str(path))) and files(tmp_path) <= {"base.pth"}


# --- resuming with other data, and by name --------------------------------------------------------------------------------


def spoil(kind: str, folder: Path) -> None:
    """Changes the data there in one respect."""
    images, path = sorted((folder / "train").iterdir()), folder / "tokenized_train.pth"
    tokens = read(path)
    if kind == "half of the images":
        for image in images[::2]:
            image.unlink()
    elif kind == "another image":
        shutil.copy(images[1], images[-1])
    elif kind == "validation":
        sorted((folder / "valid").iterdir())[0].unlink()
    elif kind == "another tokenizer":
        write(tokens | {"tokenizer": "0123456789abcdef fedcba9876543210"}, path)
    elif kind == "other tokens":
        write(tokens | {"tokens": tokens["tokens"].flip(0)}, path)
    else:
        write(tokens | {"names": [*tokens["names"][:-1], "other"]}, path)


IMAGES, TOKENS = ("half of the images", "another image", "validation"), ("another tokenizer", "other tokens", "other names")


@pytest.mark.parametrize("model, kind", [*((AE, kind) for kind in IMAGES), *((PRIOR, kind) for kind in TOKENS)])
def test_a_run_is_resumed_with_the_data_that_it_began_with_alone(train, data, tmp_path, monkeypatch, model, kind):
    shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns(".cache"))
    assert stopped_run(train, monkeypatch, model, 3, data="d").returncode == 130
    shutil.copytree(tmp_path / "d", tmp_path / "whole")
    spoil(kind, tmp_path / "d")
    before = files(tmp_path)
    error = sentence(train(model, "--resume"))
    split, n = ("validation", 8) if kind == "validation" else ("training", 24)
    assert f"data that the run began with, {n} {split} samples, but there are " in error and files(tmp_path) == before
    assert f"{12 if kind == IMAGES[0] else 7 if kind == 'validation' else '24 others'} now" in error
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "whole").rename(tmp_path / "d")
    assert train(model, "--resume").returncode == 0


def test_an_early_state_does_not_say_what_its_data_was(train, tmp_path, monkeypatch):
    assert stopped_run(train, monkeypatch, AE, 3).returncode == 130
    path = only(tmp_path, "checkpoints/*.state.pth")
    state = read(path)
    del state["data"], state["settings"]["name"]
    write(state, path)
    assert train(AE, "--resume").returncode == 0


def test_a_run_may_have_a_name_and_is_resumed_by_it(train, tmp_path, monkeypatch):
    assert stopped_run(train, monkeypatch, AE, 3, name="v1.5").returncode == 130
    assert {"checkpoints/v1.5.pth", "checkpoints/v1.5.state.pth"} < files(tmp_path) and only(tmp_path, "logs/v1.5/*")
    before = files(tmp_path)
    assert "logs/v1.5 is there already; choose another, or add --resume" in sentence(train(AE, name="v1.5"))
    assert "--name of the run" in sentence(train(AE, "--resume"))
    assert "v1.5.state.pth is of a PatchAutoEncoder, not of BSQ" in sentence(train(BSQ, "--resume", name="v1.5"))
    assert "--name differs" in sentence(train("checkpoints/v1.5.pth", "--resume", name="v2")) and files(tmp_path) == before
    assert train(AE, "--resume", name="v1.5").returncode == 0
    assert "logs/v1.5 is there already; choose another, or remove" in sentence(train(AE, name="v1.5"))
    assert checkpoint.load(tmp_path / "checkpoints" / "v1.5.pth").meta["update"] == 12


def test_a_named_run_that_began_from_a_checkpoint_is_resumed_by_the_same_command(train, tmp_path, monkeypatch):
    """Whether the checkpoint's own run has ended or not."""
    for name, first in ("one", AE), ("two", "checkpoints/one.pth"), ("three", "checkpoints/two.pth"):
        assert stopped_run(train, monkeypatch, first, 3, name=name).returncode == 130
    for name, first in ("three", "checkpoints/two.pth"), ("one", AE), ("two", "checkpoints/one.pth"):
        done = train(first, "--resume", name=name)
        assert done.returncode == 0 and f"Resuming checkpoints/{name}.pth at update 4 of 12" in done.stderr
        assert not (tmp_path / "checkpoints" / f"{name}.state.pth").is_file()


@pytest.mark.parametrize("name", ["a/b", "..", "", ".hidden", "-x", "a b", "v1.state"])
def test_a_name_that_is_none_is_refused(call, tmp_path, name):
    with pytest.raises(ValueError, match="--name is .* must be of letters"):
        call(AE, name=name)
    assert files(tmp_path) == set()


def test_no_run_takes_the_names_of_anothers_checkpoints(call, tmp_path):
    """v1.pth, v1.state.pth, and with --keep_every v1_6.pth and the like."""
    call(AE, name="v1_6")
    before = (tmp_path / "checkpoints" / "v1_6.pth").read_bytes()
    with pytest.raises(ValueError, match="--name is v1, but checkpoints/v1_6.pth is there already"):
        call(AE, name="v1", keep_every=1, epochs=1)
    call(AE, name="v", keep_every=1)
    call(AE, name="v1")
    assert (tmp_path / "checkpoints" / "v1_6.pth").read_bytes() == before


# --- resuming what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [AE, "checkpoints/none.pth"])
def test_resuming_nothing_is_an_error(train, tmp_path, model):
    assert model in sentence(train(model, "--resume")) and files(tmp_path) == set()


@pytest.mark.parametrize("damage", ["truncated", "another file", "another model's"])
def test_resuming_from_a_damaged_state_is_an_error(train, tmp_path, monkeypatch, damage):
    def stop(self):
        raise OSError("stop here")

    with monkeypatch.context() as patch:  # a run that ends after its first save
        patch.setattr(Run, "validate", lambda self: None)
        patch.setattr(Run, "log", stop)
        train(AE, validate_every=1)
    state = only(tmp_path, "checkpoints/*.state.pth")
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-300])
    elif damage == "another file":
        write({"tokens": torch.zeros(1, 2, 3)}, state)
    else:
        write(read(state) | {"model": build(PRIOR).state_dict()}, state)
    before = files(tmp_path)
    assert ".state.pth" in sentence(train(AE, "--resume")) and files(tmp_path) == before


# --- options --------------------------------------------------------------------------------------------------------------


def test_an_unknown_model_lists_the_known_ones(train, tmp_path):
    error = sentence(train("Nonsense"))
    assert "Nonsense" in error and all(name in error for name in registry.MODELS) and files(tmp_path) == set()


@pytest.mark.parametrize("model", [AE, PRIOR])
def test_an_unknown_option_gets_the_nearest_one(train, tmp_path, model):
    for option in "batch_size", *TINY[model]:
        error = sentence(train(model, **{f"{option}s": 1}))
        assert f"There is no option --{option}s; did you mean --{option}?" in error and files(tmp_path) == set()


BAD = [
    ("batch_size", 0), ("batch_size", 2.5), ("batch_size", "x"), ("accumulate", 0), ("epochs", 0), ("epochs", "x"),
    ("epochs", -1), ("lr", 0), ("lr", -1), ("lr", "x"), ("lr", True), ("warmup", -1), ("weight_decay", 1), ("clip", 0),
    ("clip", "x"), ("ema", 1), ("ema", -0.1), ("ema", "x"), ("seed", -1), ("seed", "x"), ("limit", 0),
    ("validate_every", 0), ("save_every", 0), ("device", "abacus"), ("image_size", "x"), ("augment", "maybe"),
    ("resume", "x.pth"), ("patch_size", 0), ("patch_size", 2.5), ("latent_dim", "x"), ("detail", -1),
    *((option, 10**400) for option in ("epochs", "lr", "clip", "seed")), ("epochs", 1e308), ("lr", 1e300), ("seed", 2**63),
    *((option, "") for option in ("data", "dataset", "coarse", "init", "output", "tokenizer")),
]  # fmt: skip


@pytest.mark.parametrize("option, value", BAD)
def test_a_bad_option_is_named(train, tmp_path, option, value):
    error = sentence(train(AE, **{option: value}))
    assert option in error and str(value) in error and files(tmp_path) == set()


@pytest.mark.parametrize("bits", [0, 63, "ten"])
def test_bad_codebook_bits_are_named(train, bits):
    assert "codebook_bits" in sentence(train(BSQ, codebook_bits=bits))


def test_runs_that_start_in_the_same_second_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [resume.new_name(AE) for _ in range(3)]
    assert len(set(names)) == 3 and all(re.fullmatch(f"{DATE}_{AE}", name) for name in names)


def test_a_factor_without_a_step_is_refused(train, tmp_path):
    assert "--lr_factor is for --lr_step" in sentence(train(AE, lr_factor=0.5)) and files(tmp_path) == set()


def test_more_samples_an_update_than_there_are(train):
    error = sentence(train(AE, batch_size=10, accumulate=3))
    assert "30" in error and "24" in error and "--batch_size" in error


@pytest.fixture
def configured(command, tmp_path, monkeypatch, data):
    """Trains with a JSON file of these options and these arguments; returns what happened and the model."""

    def call(options: object, *arguments: str) -> tuple[SimpleNamespace, torch.nn.Module | None]:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "c.json").write_text(options if isinstance(options, str) else json.dumps(options))
        done = command("train", *arguments, "--config", "c.json")
        paths = list(tmp_path.glob("homework/*.pth"))
        return done, checkpoint.load(paths[0]) if paths else None

    call.options = {"data": str(data), "device": "cpu", "epochs": 0.1, "batch_size": 2, **TINY[BSQ]}
    return call


def test_the_command_line_wins_over_the_file(configured):
    options = configured.options | {"codebook_bits": 6, "seed": 3, "limit": None, "augment": False}
    done, model = configured(options, BSQ, "--codebook_bits", "5", "--latent-dim", "12")
    assert done.returncode == 0, done.stderr
    assert model.config["codebook_bits"] == 5 and model.config["latent_dim"] == 12  # hyphens are another spelling
    assert model.config["patch_size"] == 5 and model.config["detail"] == 4


def test_a_file_may_name_the_model_too(configured):
    done, model = configured(configured.options | {"model": BSQ})
    assert done.returncode == 0 and type(model).__name__ == BSQ, done.stderr


def test_a_model_on_the_command_line_wins_as_well(configured):
    done, model = configured({k: v for k, v in configured.options.items() if k != "codebook_bits"} | {"model": BSQ}, AE)
    assert done.returncode == 0 and type(model).__name__ == AE, done.stderr


def test_python_takes_the_file_too(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    options = {"data": str(data), "device": "cpu", "epochs": 0.1, "batch_size": 2, "output": "x.pth", **TINY[AE]}
    Path("c.json").write_text(json.dumps(options | {"detail": 8, "seed": 3}))
    train_function(AE, seed=0, detail=4, config="c.json")  # explicit arguments win, those that equal their default too
    model = checkpoint.load("x.pth")
    assert model.config["detail"] == 4 and model.config["latent_dim"] == TINY[AE]["latent_dim"]
    (text,) = (e for e in only(tmp_path, "logs/*").iterdir())
    assert b'"seed": 0' in text.read_bytes()


@pytest.mark.parametrize("content", ["{", "[1, 2]", "5", '{"no_such": 1}', '{"batch_size": 0}', '{"lr": "fast"}'])
def test_a_bad_file_of_options_is_named(configured, tmp_path, content):
    error = sentence(configured(content, AE, "--data", configured.options["data"])[0])
    named = re.findall(r"no_such|batch_size|lr", content)
    assert (named[0] if named else "c.json") in error and files(tmp_path) == {"c.json"}


def test_a_missing_file_of_options_is_named(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "none.json" in sentence(command("train", AE, "--config", "none.json"))


# --- what can go wrong ----------------------------------------------------------------------------------------------------


def test_a_missing_data_folder_is_named_with_the_remedy(train, tmp_path):
    assert "homework.data" in sentence(train(AE, data="nowhere"))
    error = sentence(train(PRIOR, data="nowhere"))
    assert "tokenized_train.pth" in error and "homework.tokenize" in error and files(tmp_path) == set()
    assert "2026" in sentence(train(AE, data=2026))


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff" + bytes(200), "odd"])
def test_a_broken_or_odd_image_is_named(train, tmp_path, data, content):
    for split in "train", "valid":
        shutil.copytree(data / split, tmp_path / "d" / split)
    bad = tmp_path / "d" / "valid" / "003.jpg"
    if content == "odd":
        Image.new("RGB", (31, 20)).save(bad)
    else:
        bad.write_bytes(content)
    before = files(tmp_path)
    assert "003.jpg" in sentence(train(AE, data=tmp_path / "d")) and files(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"junk", {"a": 1}, torch.zeros(2, 3, 4), torch.zeros(5, dtype=torch.int64),
                                     torch.zeros(9, 4, 6, dtype=torch.complex64)])
def test_what_is_not_a_file_of_tokens_is_named(train, tmp_path, content):
    (tmp_path / "tokenized_train.pth").write_bytes(content) if isinstance(content, bytes) else write(
        content, tmp_path / "tokenized_train.pth"
    )
    assert "tokenized_train.pth" in sentence(train(PRIOR, data=tmp_path)) and len(files(tmp_path)) == 1


@pytest.mark.parametrize("model", [AE, PRIOR])
def test_a_loss_that_is_not_finite_ends_the_run_in_a_sentence(train, tmp_path, model):
    error = sentence(train(model, lr=1e30, warmup=0, epochs=3, validate_every=30))
    assert "--lr" in error and "1e+30" in error
    assert not [f for f in files(tmp_path) if not f.startswith("logs")]


@pytest.mark.parametrize("options", [{"keep_every": 1}, {"save_every": 1e-9}])
def test_weights_of_an_infinite_loss_are_neither_kept_nor_resumed_from(train, tmp_path, options):
    """Those after the first update, whose own loss was finite."""
    assert "--lr" in sentence(train(AE, lr=1e30, warmup=0, validate_every=30, **options))
    assert not [f for f in files(tmp_path) if f.endswith(".pth")]


def test_some_checkpoints_are_kept(train, tmp_path):
    assert train(AE, keep_every=5, name="run").returncode == 0
    kept = {f: checkpoint.load(tmp_path / f).meta["update"] for f in files(tmp_path) if f.startswith("checkpoints/run")}
    assert kept == {"checkpoints/run.pth": 12, "checkpoints/run_5.pth": 5, "checkpoints/run_10.pth": 10}


@pytest.mark.parametrize("model", [AE, PRIOR])
def test_weights_that_are_not_finite_are_never_saved(train, tmp_path, model):
    """The loss of an update is that of the weights before it: those after it may be lost already."""
    assert train(model, epochs=0.1).returncode == 0  # a good model is there
    before = {f: (tmp_path / f).read_bytes() for f in files(tmp_path) if f.endswith(".pth")}
    error = sentence(train(model, lr=1e30, warmup=0, validate_every=1))
    assert "--lr" in error
    assert {f: (tmp_path / f).read_bytes() for f in files(tmp_path) if f.endswith(".pth")} == before


def test_a_full_disk_ends_the_run_in_a_sentence_and_leaves_the_last_save(train, tmp_path, monkeypatch):
    """The state, with weights and averages and Adam's moments, is the largest file; it stops fitting at update 5."""
    save, limit = Run.save, [10**9]

    def full(self, *how):
        with file_size_limit(limit[0]):
            saved = save(self, *how)
        limit[0] = 300_000 if self.update >= 4 else limit[0]
        return saved

    monkeypatch.setattr(Run, "save", full)
    error = sentence(train(AE, latent_dim=64, validate_every=1))
    assert ".pth" in error
    state = read(only(tmp_path, "checkpoints/*.state.pth"))
    assert state["update"] == 4
    assert not [f for f in files(tmp_path) if f.endswith(".tmp")]
    for path in tmp_path.glob("*/*_PatchAutoEncoder.pth"):
        checkpoint.load(path)
    monkeypatch.setattr(Run, "save", save)
    assert train(AE, "--resume").returncode == 0  # and it continues once there is room again


@pytest.mark.parametrize("place", ["checkpoints", "homework", "read-only", f"homework/{AE}.pth/x"])
def test_what_cannot_be_written_is_named_before_the_training(train, tmp_path, monkeypatch, place):
    if place == "read-only":
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    else:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    before = set(tmp_path.rglob("*"))
    folder = tmp_path if place == "read-only" else tmp_path / place
    problem = f"homework/{AE}.pth is a folder" if place.endswith("x") else f"{folder} is not a folder in which files can"
    assert problem in sentence(train(AE)) and set(tmp_path.rglob("*")) == before


def test_what_holds_no_model_is_not_replaced(train, tmp_path, data):
    shutil.copy(data / "tokenized_train.pth", tmp_path / "t.pth")
    assert "--output is t.pth, but that file holds something else" in sentence(train(PRIOR, output="t.pth"))
    assert files(tmp_path) == {"t.pth"} and len(TokenDataset(tmp_path / "t.pth")) == 24
    for _ in range(2):
        assert train(AE, output="m.pth", epochs=0.1).returncode == 0  # a model may be


def test_a_model_that_does_not_take_the_data_is_named_before_the_run_has_a_name(train, tmp_path):
    assert "train one with --height 4" in sentence(train(PRIOR, height=3, name="run")) and files(tmp_path) == set()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("Tried to allocate 20.00 GiB."),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")])
def test_too_little_memory_is_a_sentence(train, monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(Run, "step", fail)
    assert "lower --batch_size" in sentence(train(AE))
    error.args = ("another one",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="another one"):
            train(AE)


ONE, OTHER = "0123456789abcdef 0123456789abcdee", "fedcba9876543210 fedcba9876543211"


@pytest.mark.parametrize("fields", [{"n_tokens": 32}, {"tokenizer": OTHER}])
def test_grids_of_two_tokenizers_are_not_mixed(train, tmp_path, data, fields):
    for split, changed in ("train", {"tokenizer": ONE}), ("valid", {"tokenizer": ONE} | fields):
        write(read(data / f"tokenized_{split}.pth") | changed, tmp_path / "d" / f"tokenized_{split}.pth")
    assert "are of different tokenizers" in sentence(train(PRIOR, data="d")) and len(files(tmp_path)) == 2


@pytest.mark.parametrize("fields", [{"n_tokens": None}, {"n_tokens": "x"}, {"n_tokens": 10**30}, {"n_tokens": math.inf},
                                    {"names": 5}, {"names": [5] * 24}, {"tokenizer": 5},
                                    {"tokens": torch.zeros(24, 4, 6, dtype=torch.int64).to_sparse()}])
def test_token_files_with_fields_of_other_types_are_named(train, tmp_path, data, fields):
    write(read(data / "tokenized_train.pth") | fields, tmp_path / "tokenized_train.pth")
    assert "tokenized_train.pth has fields of other types" in sentence(train(PRIOR, data="."))


def test_a_token_file_has_a_name_for_each_grid_or_none(train, tmp_path, data):
    write(read(data / "tokenized_train.pth") | {"names": ["a.png"]}, tmp_path / "tokenized_train.pth")
    assert "grids, but 1 names; make it again" in sentence(train(PRIOR, data="."))


def test_one_process_that_fails_ends_the_others_in_a_sentence(arguments, tmp_path):
    checkpoint.save(build(AE), tmp_path / "t.pth")  # which the first process alone loads
    done = run("-m", "homework.train", *arguments(PRIOR, tokenizer="t.pth"), cwd=tmp_path, processes=2, fresh=True)
    assert done.returncode != 0 and done.stderr.count("holds a PatchAutoEncoder, but no tokenizer") == 1
    assert "[rank" not in done.stderr  # how torch marks a traceback of one of its processes
    assert files(tmp_path) == {"t.pth"}


def test_counters_are_taken_over_with_what_they_count_alone():
    """With a codebook of another size, a VQ's count of updates must stay 0: it starts from the first batch then."""
    donor = build("VQPatchAutoEncoder")
    donor.quantizer.updates.fill_(500)
    same, other = build("VQPatchAutoEncoder", 1), build("VQPatchAutoEncoder", 1, n_tokens=K + 1)
    for model in same, other:
        load_matching_weights(model, donor, "donor.pth")
        assert torch.equal(model.encoder.out.weight, donor.encoder.out.weight)
    assert int(same.quantizer.updates) == 500 and int(other.quantizer.updates) == 0


def test_a_disk_that_is_truly_full(arguments, tmp_path, data):
    """Also for TensorBoard's log, which is written by a thread of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a tiny disk needs rights that this user does not have")
    try:
        command = arguments(AE, latent_dim=64, validate_every=1, epochs=20)
        done = run("-m", "homework.train", *command, cwd=disk)
        sentence(done)
        assert not [f for f in files(disk) if f.endswith(".tmp")]
        for path in disk.glob("*/*PatchAutoEncoder.pth"):
            checkpoint.load(path)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_it_runs_as_a_program_and_fails_as_one(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "homework.train"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert "--help" in sentence(done) and all(name in done.stderr for name in registry.MODELS)


def test_the_pretrained_models_cannot_be_named_as_output(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint.PRETRAINED / "BSQPatchAutoEncoder.pth"
    assert "pretrained models stay" in sentence(command("train", "BSQPatchAutoEncoder", "--output", path))


def test_a_checkpoint_holds_the_arguments_of_its_own_command_alone(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/homework/train.py", "PixelCNN", "--epochs", "2"])
    assert cli.command_line("train") == "python -m homework.train PixelCNN --epochs 2"
    monkeypatch.setattr(sys, "argv", ["/somewhere/ipykernel_launcher.py", "-f", "/home/someone/kernel.json"])
    assert cli.command_line("train") == "python -m homework.train"
