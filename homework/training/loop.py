"""The training loop: order of the data, weights and their average, curves, saving. Knows no model."""

import copy
import functools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from homework.core import checkpoint, checks, cli, devices, files
from homework.core.files import printable
from homework.core.model import Model
from homework.core.processes import say
from homework.datasets.base import Sliceable
from homework.training import distributed, resume, sharded
from homework.training.settings import set_up
from homework.training.validation import measure

ENDS = signal.SIGTERM, cli.HANGUP  # signals after which a run ends as after Ctrl-C
LOG_EVERY = 10  # updates between two points of the curves; losses stay on the device in between
LONG = 600  # seconds: of a training that takes less, the user need not hear how it could be shorter
FLUSH_EVERY = 2  # seconds until what was logged can be read; TensorBoard's own two minutes are too long to watch a training


def shades_of_grey(grids: Tensor, n_tokens: int) -> Tensor:
    """Token grids (n,h,w) in [0,K) -> pictures (n,3,h,w) in [0,1], where no tokenizer decodes them."""
    return (grids / max(1, n_tokens - 1))[:, None].expand(-1, 3, -1, -1).float()


def train(settings: dict, given: dict, asked: bool, grid_decoder: Callable) -> None:
    """Fits a :class:`Run` of these ``settings``; or, if the user has ``asked`` to resume one or torchrun has restarted this,
    the unfinished run that the options that were ``given`` choose. Leaves the global generators as they were."""
    state, again = None, distributed.restarted()
    with distributed.group(settings["timeout"]):
        if asked or again:  # the first process alone needs to have the file
            settings, state = distributed.of_first(lambda: resume.resume_settings(settings, given, again, asked))
            if state is None:  # a process died when all was written
                return say("The training had ended before it was started again.")
        with devices.keeping_generators(devices.pick_device(settings["device"])):
            Run(settings, state, grid_decoder).fit()


class Run:
    """One training run, by the arguments of :func:`homework.train.train`; to resume one, with the ``state`` that
    :func:`homework.training.resume.resume_settings` gives. ValueError if settings, data and state do not go together.

    Every draw (order of the data, augmentation, dropout) is a function of (seed, update, number of the batch in it). So the
    state is weights, optimizer, average and the number of the update, and a resumed run repeats the uninterrupted one; on
    another number of processes to rounding.

    ``grid_decoder``, where there is one, shows token grids, see :func:`homework.tokenizers.pictures.grid_decoder`.
    """

    def __init__(self, settings: dict, state: dict | None = None, grid_decoder: Callable | None = None):
        self.settings = s = dict(settings)
        self.device = distributed.setup(devices.pick_device(s["device"]))
        self.autocast = s["precision"] == "bfloat16" or (s["precision"] == "auto" and self.device.type == "cuda")
        self.rank, self.world = distributed.rank(), distributed.world_size()
        self.model, self.train_data, self.valid_data = set_up(s, state, torch.device("cpu") if s["fsdp"] else self.device)
        self.data = [resume.fingerprint(data) for data in (self.train_data, self.valid_data)]
        if state:
            resume.check_data(state, self.data)
        for option, default in (("lr", self.model.learning_rate), ("warmup", self.model.warmup)):
            s[option] = default if s[option] is None else s[option]
        if state:
            s["accumulate"] = resume.accumulated(state["group"], s["batch_size"], self.world)
        self.n_train, self.n_valid = (min(len(d), s["limit"] or len(d)) for d in (self.train_data, self.valid_data))
        self.group = s["batch_size"] * s["accumulate"] * self.world  # samples an update
        self.per_epoch = self.n_train // self.group
        if not self.per_epoch:
            raise ValueError(f"One update takes {self.group} samples, but there are {self.n_train}; lower --batch_size.")
        self.updates = max(1, round(s["epochs"] * self.per_epoch))

        self.average = copy.deepcopy(self.model).requires_grad_(False) if s["ema"] else self.model
        if s["fsdp"]:
            sharded.check(self.model, s["compile"])
            for model in dict.fromkeys((self.model, self.average)):
                sharded.share_out(model, self.device)
        self.optimizer = self.build_optimizer()
        loss = torch.compile(self.model.loss) if s["compile"] else self.model.loss
        self.gradients: distributed.Gradients | sharded.Gradients
        if s["fsdp"]:
            self.gradients = sharded.Gradients(self.model)
        else:
            self.gradients = distributed.Gradients(self.model, loss, overlap=self.device.type == "cuda")
        self.update, self.seconds = 0, 0.0
        self.measures: dict[str, float] = {}
        self.sums: dict[str, Tensor] = {}
        self.epoch, self.order = -1, cast(Sliceable, torch.empty(0))  # the permutation of the training data in this epoch
        self.stopped, self.saved_at = 0, time.perf_counter()  # the signal that asked to stop
        if state:
            resume.restore(self, state)
        # half the size, and no measure changes in its first three digits
        self.copy_path = s["output"] or Path("homework") / f"{type(self.model).__name__}.pth"
        with torch.no_grad():  # before a run has a name: an error for data that this model does not take
            self.average.eval().loss(self.first_samples())
        decoder, K = None, self.model.n_tokens or 0
        if grid_decoder and self.rank == 0 and "grids" in self.train_data.holds:
            # before anything is written, as the next: a bad --tokenizer must not cost the time until the first pictures
            grids = self.first_samples()
            grids = grids[-1] if isinstance(grids, tuple) else grids  # of pairs, those that the model shows
            decoder = grid_decoder(s["tokenizer"], self.train_data.meta.get("tokenizer"), K, grids)
        self.decode_grids: Callable[[Tensor], Tensor] = decoder or functools.partial(shades_of_grey, n_tokens=K)
        for path in (Path("checkpoints", "a.pth"), Path(self.copy_path)) if self.rank == 0 else ():
            files.check_writable(path)
        if not state:
            name = resume.new_name(type(self.model).__name__, s["name"], bool(s["keep_every"])) if self.rank == 0 else None
            self.name = distributed.broadcast(name)
        self.path = Path("checkpoints") / f"{self.name}.pth"
        self.state_path = self.path.with_suffix(".state.pth")
        self.writer = self.open_log(resumed=state is not None) if self.rank == 0 else None
        self.bar = tqdm(total=self.updates * self.group, initial=self.update * self.group, unit="img", smoothing=0.05,
                        desc=f"training {type(self.model).__name__}", disable=self.rank > 0, mininterval=1)  # fmt: skip

    def build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW whose weight decay applies to matrices alone."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": self.settings["weight_decay"]},
                  {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
        return torch.optim.AdamW(groups, lr=self.settings["lr"], betas=(0.9, 0.95), fused=self.device.type == "cuda")

    def open_log(self, resumed: bool) -> SummaryWriter:
        """TensorBoard's log: that of a resumed run continues at its update, a new one begins with the configuration."""
        purge_step = self.update + 1 if resumed else None
        writer = SummaryWriter(Path("logs") / self.name, purge_step=purge_step, flush_secs=FLUSH_EVERY)
        if resumed:
            say(f"Resuming {self.path} at update {self.update} of {self.updates}.")
        else:
            shown = json.dumps({"settings": self.settings, "model": self.model.config}, indent=2, default=str)
            writer.add_text("configuration", f"```\n{shown}\n```")
        return writer

    def fit(self) -> None:
        """Trains to the end, or until Ctrl-C. ValueError if the loss is not a finite number any more."""
        validate_every, keep_every = self.settings["validate_every"] or self.per_epoch, self.settings["keep_every"]
        started = time.perf_counter() - self.seconds
        if self.world > 1 and not self.update:  # so that torchrun can start again at any time
            state = resume.state_of(self)
            if self.rank == 0:
                files.write(state, self.state_path)
        try:
            with distributed.together(), cli.on_signals(self.ask_to_stop, signal.SIGINT, *ENDS):
                while self.update < self.updates:
                    self.sums = {k: self.sums.get(k, 0) + v for k, v in self.step().items()}
                    self.update, self.seconds = self.update + 1, time.perf_counter() - started
                    self.bar.update(self.group)
                    last = self.update == self.updates
                    logs, validates = (last or self.update % every == 0 for every in (LOG_EVERY, validate_every))
                    if logs:
                        self.log()
                    stops, due = distributed.any_of(bool(self.stopped), self.is_save_due())  # for --fsdp saves together
                    if validates:
                        self.validate()
                    keeps = bool(keep_every) and self.update % keep_every == 0
                    if validates or keeps or stops or due:
                        saved = self.save(last, validates, keeps)
                        if validates and self.writer:
                            self.draw(saved, self.writer)
                    if stops or last:
                        self.leave(last)
        finally:
            self.gradients.close()
            self.bar.close()
            if self.writer:
                self.writer.close()
        if self.rank == 0:
            figures = ", ".join(f"{k} {v:.5g}" for k, v in self.measures.items())
            n = checks.count(self.n_valid, "validation sample")
            print(f"{self.path}: {figures} on {n}, after {self.seconds / 60:.1f} minutes; "
                  f"in float16 as {self.copy_path}")  # fmt: skip

    def is_save_due(self) -> bool:
        return time.perf_counter() - self.saved_at > 60 * self.settings["save_every"]

    def ask_to_stop(self, number: int = signal.SIGINT, _: object = None) -> None:
        """A first Ctrl-C lets the update finish and saves; a second one stops at once."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = number

    def leave(self, finished: bool) -> None:
        """Names the samples that were left out. KeyboardInterrupt, or after SIGTERM or SIGHUP SystemExit (143 or 129),
        unless the run has ``finished``."""
        # waits, since torchrun stops all processes as soon as one has left with an error
        every = distributed.gather([*self.train_data.left_out, *self.valid_data.left_out]) or []
        if bad := sorted({printable(line) for own in every for line in own}):
            say("Left out:" + "".join(f"\n  {line}" for line in bad))
        if not finished:
            say(f"Saved at update {self.update} of {self.updates}; continue with --resume.")
            if self.stopped in ENDS:
                sys.exit(128 + self.stopped)
            raise KeyboardInterrupt

    def step(self) -> dict[str, Tensor]:
        """One update of the weights; returns the detached measures, averaged over the accumulated batches."""
        s = self.settings
        order = self.samples().view(s["accumulate"], self.world, s["batch_size"])  # (group) -> (accumulate,world,batch_size)
        self.model.train()
        self.model.set_progress(self.update / self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        measures: dict[str, Tensor] = {}
        for a, indices in enumerate(order[:, self.rank]):
            number = a * self.world + self.rank  # of the batch in this update, whatever the number of processes
            draws, others = (devices.generator(s["seed"], self.update, number, 0, i) for i in range(2))
            devices.seed_generators(others.initial_seed(), self.device)  # of dropout and the like
            batch = self.train_data.batch(indices, self.device)
            if a == s["accumulate"] - 1:
                self.train_data.prefetch(self.samples_ahead())
            if s["augment"]:
                batch = self.train_data.augment(batch, draws, indices)
            with torch.autocast(self.device.type, torch.bfloat16, self.autocast):
                losses = self.gradients.loss(batch, last=a == s["accumulate"] - 1)
            (losses["loss"] / s["accumulate"]).backward()
            measures = {k: measures.get(k, 0) + v.detach() / s["accumulate"] for k, v in losses.items()}
        self.gradients.average()
        measures["gradient_norm"] = sharded.summed(nn.utils.clip_grad_norm_(self.model.parameters(), s["clip"]).detach())
        self.optimizer.step()
        self.model.after_update()
        if s["ema"]:
            self.update_average()
        return measures

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average towards the weights; at first faster, so that it forgets the initial weights soon."""
        decay = min(self.settings["ema"], (1 + self.update) / (10 + self.update))
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.model.parameters()), self.update)
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def samples(self) -> Tensor:
        """The samples of this update (group), from the epoch's permutation; the same on every process."""
        epoch, i = divmod(self.update, self.per_epoch)
        if epoch != self.epoch:
            draws = functools.partial(devices.generator, self.settings["seed"], epoch)
            self.epoch, self.order = epoch, self.train_data.order(self.n_train, draws)
        return self.order[i * self.group : (i + 1) * self.group]

    def samples_ahead(self) -> Tensor:
        """This process's samples of the next update, if it is of the same epoch."""
        i, s = self.update % self.per_epoch + 1, self.settings
        n = self.group if i < self.per_epoch else 0
        ahead = self.order[i * self.group : i * self.group + n]
        return ahead.view(s["accumulate"], -1, s["batch_size"])[:, self.rank].flatten() if n else ahead

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine from the peak to a hundredth of it (Loshchilov and Hutter, arXiv 1608.03983), or
        with --lr_step stairs down from the peak."""
        s, warmup = self.settings, min(self.settings["warmup"], self.updates // 2)
        if self.update < warmup:
            return s["lr"] * (self.update + 1) / warmup
        if s["lr_step"]:
            return s["lr"] * s["lr_factor"] ** (self.update // s["lr_step"])
        f = (self.update - warmup) / max(1, self.updates - warmup)
        return s["lr"] * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * f)))

    def log(self) -> None:
        """Writes the mean measures since the last call; ValueError if the loss is not finite."""
        self.check_finite(self.sums)
        n = (self.update - 1) % LOG_EVERY + 1  # the last call was at a multiple of LOG_EVERY
        means, self.sums = {k: float(v) / n for k, v in self.sums.items()}, {}
        self.bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
        if self.writer:
            for k, v in means.items():
                self.writer.add_scalar(f"train/{k}", v, self.update)
            self.writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.update)
            self.writer.add_scalar("train/images_per_second", self.update * self.group / self.seconds, self.update)
        left = (self.updates - self.update) / self.update * self.seconds
        if self.update == LOG_EVERY and self.device.type == "cpu" and left > LONG and self.rank == 0:
            self.compare_precisions()

    def compare_precisions(self) -> None:
        """Says if the other precision is much faster on this CPU, by its matrix products."""
        ratio = devices.bfloat16_speedup()
        if self.autocast and ratio < 1:
            say(f"This CPU multiplies matrices in bfloat16 {1 / ratio:.1f} times as slowly; --precision float32 is faster.")
        elif not self.autocast and ratio > 1.5:
            say(f"This CPU multiplies matrices in bfloat16 {ratio:.1f} times as fast; --precision bfloat16 makes use of it.")

    def check_finite(self, measures: Mapping[str, Tensor | float]) -> None:
        """ValueError if the loss or the gradient is not finite: nothing is logged or saved after it."""
        if not all(math.isfinite(measures.get(k, 0.0)) for k in ("loss", "gradient_norm")):
            kept = "--resume continues from the last save" if self.state_path.is_file() else "nothing was saved yet"
            raise ValueError(f"The loss is not a finite number any more at update {self.update}; {kept}. Start again with a "
                             f"lower --lr (it is {self.settings['lr']}) or a longer --warmup.")  # fmt: skip

    def validate(self) -> None:
        """Measures the averaged weights on the validation data, every process its share, and logs the figures."""
        model = self.average.eval()
        model.set_progress(self.update / self.updates)
        figures = measure(model, self.valid_data, self.n_valid, self.settings["batch_size"], self.device)
        if figures is None or self.writer is None:  # not the first process
            return
        self.measures = figures
        self.check_finite(self.measures)
        for k, figure in self.measures.items():
            self.writer.add_scalar(f"valid/{k}", figure, self.update)

    def first_samples(self, device: torch.device | None = None) -> Any:
        """A few samples of the validation data, always the same, on the run's device or another one."""
        return self.valid_data.batch(torch.arange(min(8, self.n_valid)), device or self.device)

    @torch.no_grad()
    def draw(self, model: Model, writer: SummaryWriter) -> None:
        """Logs pictures, by the averaged ``model``."""
        for k, v in model.images(self.first_samples(model.device)).items():
            writer.add_images(k, v if v.is_floating_point() else self.decode_grids(v), self.update)

    def meta(self) -> dict:
        return {"command": cli.command_line("train"), "update": self.update,
                "minutes": self.seconds / 60, "valid": self.measures} | self.model.meta  # fmt: skip

    @torch.no_grad()
    def save(self, finished: bool, validated: bool, kept: bool) -> Model:
        """Writes the averaged model, a second time if it is to be ``kept``, and until the run is ``finished`` what --resume
        needs. The copy in float16 is written if the model has just been ``validated``: a run that was stopped early spoils
        no good copy. Returns the averaged model, whole on the first process. ValueError if the loss is not finite."""
        self.check_finite(self.sums)
        self.saved_at = time.perf_counter()
        if not validated:  # the last loss is that of the weights before their last update
            self.check_finite(self.average.eval().loss(self.first_samples()))
        model, state = sharded.whole(self.average.eval()), None if finished else resume.state_of(self)
        if self.rank:
            return model
        checkpoint.save(model, self.path, self.meta())
        if kept:
            checkpoint.save(model, self.path.with_stem(f"{self.name}_{self.update}"), self.meta())
        if state:
            files.write(state, self.state_path)
        if validated:
            checkpoint.save(model, self.copy_path, self.meta(), torch.float16)
        if finished:
            self.state_path.unlink(missing_ok=True)
        return model
