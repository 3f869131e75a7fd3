"""The training loop: order of the data, weights and their average, curves, saving and resuming. Knows no model."""

import copy
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from homework.core import checkpoint, devices, files
from homework.core.registry import build, model_class
from homework.training import distributed, resume
from homework.training.resume import STATE_FIELDS, read_state
from homework.training.settings import check_origin, open_data, load_matching_weights, token_codes


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator whose seed is a hash of ``numbers``, so that a draw depends on its place alone, not on the past."""
    entropy = (len(numbers), *numbers)  # with their number, since numpy takes (1, 2) and (1, 2, 0) for the same
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1)


LOG_EVERY = 10  # updates between two points of the curves; losses stay on the device in between


def shades_of_grey(path: str, made_by: str | None, n_tokens: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The plainest way to show token grids (n,h,w), see :func:`homework.tokenizers.pictures.grid_decoder`."""
    return lambda grids: (grids / max(1, n_tokens - 1))[:, None].expand(-1, 3, -1, -1).float()


class Run:
    """One training run.

    Every draw (order of the data, augmentation, dropout) is a function of (seed, update, accumulated batch, rank). So
    weights, optimizer, average and the number of the update are all there is to save, and a resumed run repeats the
    uninterrupted one.

    Args:
        settings: the arguments of :func:`homework.train.train`.
        resumed: None for a new run; for one that is to go on, those of its settings that were told anew.
    Raises:
        ValueError: the settings do not go together, with the data, or with those of the run that is to go on.
    """

    def __init__(self, settings: dict, resumed: dict | None = None, grid_decoder: Callable = shades_of_grey):
        self.grid_decoder, self._decode = grid_decoder, None
        device, save_every = settings["device"], settings["save_every"]
        state = read_state(resume.find_state(settings["model"])) if resumed is not None else None
        for name, value in (resumed or {}).items():
            if value != (state["settings"] | state["settings"]["options"]).get(name):
                raise ValueError(f"--resume goes on with the options that the run began with, but --{name} differs; leave "
                                 "it out, or begin a new run from the checkpoint, as MODEL.")  # fmt: skip
        self.settings = s = settings | (state["settings"] if state else {})  # an old state may lack a new option
        s["output"] = settings["output"] or s["output"]
        self.save_seconds = 60 * save_every
        self.device = distributed.setup(devices.pick_device(device))
        self.rank, self.world = distributed.rank(), distributed.world_size()
        torch.manual_seed(s["seed"])
        base = checkpoint.load(s["model"]) if str(s["model"]).endswith(".pth") and not state else None
        cls = type(base) if base else model_class(state["class"] if state else str(s["model"]))
        self.train_data, self.valid_data = open_data(cls, s)
        self.data_meta = self.train_data.meta  # of tokens: which tokenizer made them
        self.n_train, self.n_valid = (min(len(d), s["limit"] or len(d)) for d in (self.train_data, self.valid_data))
        if "code_dim" in s["options"] and getattr(cls, "reads_codes", False):
            raise ValueError("--code_dim comes with the code vectors themselves; use --inputs codes.")
        codes = token_codes(cls, self.train_data) if s["inputs"] == "codes" and not state else None
        options = state["config"] if state else s["options"] | ({} if codes is None else {"code_dim": codes.shape[1]})
        others = ("resume", "config", *(k for k in s if k not in ("model", "options")))
        defaults = self.train_data.model_defaults()
        self.model = build(cls, options, defaults, base, others).to(self.device)
        for option, default in (("lr", self.model.learning_rate), ("warmup", self.model.warmup)):
            if s[option] is None:
                s[option] = default
        if base:
            check_origin(str(s["model"]), base.meta, self.data_meta)
        if not base and not state:
            self.train_data.prepare(self.model)
        if s["init"] and not state:
            load_matching_weights(self.model, checkpoint.load(s["init"]), s["init"])
        if codes is not None:
            self.model.set_codes(codes.to(self.device))
        distributed.share(self.model)
        for name, which in ("n_tokens", ""), ("coarse_tokens", "coarse "):
            K = getattr(self.model, name, self.model.config.get(name))
            if name in defaults and defaults[name] != K:
                raise ValueError(f"A {cls.__name__} is for {K} different {which}tokens, but this data has {defaults[name]}; "
                                 f"choose another --dataset or another model.")  # fmt: skip

        self.group = s["batch_size"] * s["accumulate"] * self.world  # samples an update
        self.per_epoch = self.n_train // self.group
        if not self.per_epoch:
            raise ValueError(f"One update takes {self.group} samples, but there are {self.n_train}; lower --batch_size.")
        self.updates = max(1, round(s["epochs"] * self.per_epoch))
        self.average = copy.deepcopy(self.model).requires_grad_(False) if s["ema"] else self.model
        matrices = [p for p in self.model.parameters() if p.ndim > 1 and p.requires_grad]
        others = [p for p in self.model.parameters() if p.ndim <= 1 and p.requires_grad]
        groups = [{"params": matrices, "weight_decay": s["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=s["lr"], betas=(0.9, 0.95), fused=self.device.type == "cuda")
        self.loss = torch.compile(self.model.loss) if s["compile"] else self.model.loss

        self.update, self.seconds, self.measures, self.sums = 0, 0.0, {}, {}
        if state:
            self.restore(state)
            if self.rank == 0:
                where = f"update {self.update} of {self.updates}"
                print(f"Going on with checkpoints/{self.name}.pth at {where}.", file=sys.stderr)
        else:
            self.name = distributed.broadcast(resume.new_name(cls.__name__) if self.rank == 0 else None)
        self.path = Path("checkpoints") / f"{self.name}.pth"
        self.state_path, self.writer = self.path.with_suffix(".state.pth"), None
        # what is shipped and bundled: half the size, and no measure changes in its first three digits
        self.copy_path = s["output"] or Path("homework") / f"{cls.__name__}.pth"
        if self.rank == 0:
            self.writer = SummaryWriter(Path("logs") / self.name, purge_step=self.update + 1 if state else None)
            if not state:
                shown = json.dumps({"settings": s, "model": self.model.config}, indent=2, default=str)
                self.writer.add_text("configuration", f"```\n{shown}\n```")
        self.stopped = False

    def fit(self) -> None:
        """Trains to the end, or until Ctrl-C. ValueError if the loss is not a number any more."""
        handlers = {sig: signal.signal(sig, self.ask_to_stop) for sig in (signal.SIGINT, signal.SIGTERM)}
        self.bar = tqdm(total=self.updates * self.group, initial=self.update * self.group, unit="img", smoothing=0.05,
                        desc=type(self.model).__name__, disable=self.rank > 0, mininterval=1)  # fmt: skip
        validate_every = self.settings["validate_every"] or self.per_epoch
        started, saved = time.time() - self.seconds, time.time()
        try:
            while self.update < self.updates:
                measures = self.step()
                self.sums = {k: self.sums.get(k, 0) + v for k, v in measures.items()}
                self.update += 1
                self.seconds = time.time() - started
                self.bar.update(self.group)
                last = self.update == self.updates
                tick = last or self.update % LOG_EVERY == 0
                validates = last or self.update % validate_every == 0
                if tick:
                    self.log()
                # several processes must stop at the same update, so they ask the first one, but not all the time
                stop = self.stopped if self.world == 1 else tick and distributed.broadcast(self.stopped)
                if validates:
                    self.validate()
                if self.settings["keep_every"] and self.update % self.settings["keep_every"] == 0 and self.rank == 0:
                    checkpoint.save(self.average, self.path.with_stem(f"{self.name}_{self.update}"), self.meta())
                if validates or stop or time.time() - saved > self.save_seconds:
                    self.save(last, validates)
                    saved = time.time()
                if stop or last:  # torchrun stops all processes as soon as one has left with an error
                    distributed.broadcast("saved")
                if stop and not last:
                    if self.rank == 0:
                        tqdm.write(f"Saved at update {self.update} of {self.updates}; --resume goes on.", sys.stderr)
                    raise KeyboardInterrupt
        finally:
            self.bar.close()
            for sig, handler in handlers.items():
                signal.signal(sig, handler)
            if self.writer:
                self.writer.close()
            distributed.cleanup()
        if self.rank == 0:
            figures = ", ".join(f"{k} {v:.5g}" for k, v in self.measures.items())
            print(f"{self.path}: {figures} on {self.n_valid} validation samples, after {self.seconds / 60:.1f} minutes; "
                  f"in float16 as {self.copy_path}")  # fmt: skip

    def ask_to_stop(self, *_) -> None:
        """A first Ctrl-C lets the update finish and saves; a second one stops at once."""
        if self.stopped:
            raise KeyboardInterrupt
        self.stopped = True

    def step(self) -> dict[str, Tensor]:
        """One update of the weights; returns the detached measures, averaged over the accumulated batches."""
        s = self.settings
        epoch, i = divmod(self.update, self.per_epoch)
        order = self.order(epoch)[i * self.group : (i + 1) * self.group]
        order = order.view(s["accumulate"], self.world, s["batch_size"])  # (group) -> (accumulate,world,batch_size)
        self.model.train()
        self.model.set_progress(self.update / self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        measures = {}
        for a, indices in enumerate(order[:, self.rank]):
            draws, others = (generator(s["seed"], self.update, a, self.rank, i) for i in range(2))
            torch.manual_seed(others.initial_seed())  # of dropout and the like
            batch = self.train_data.batch(indices, self.device)
            if s["augment"]:
                batch = self.train_data.augment(batch, draws, indices)
            with torch.autocast(self.device.type, torch.bfloat16, s["bf16"] and self.device.type == "cuda"):
                losses = self.loss(batch)
            (losses["loss"] / s["accumulate"]).backward()
            measures = {k: measures.get(k, 0) + v.detach() / s["accumulate"] for k, v in losses.items()}
        distributed.average_gradients(self.model.parameters())
        measures["gradient_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), s["clip"]).detach()
        self.optimizer.step()
        self.model.after_update()
        if s["ema"]:
            self.update_average()
        return measures

    @torch.no_grad()
    def update_average(self) -> None:
        """Moves the average towards the weights; a young one faster, for it must not hang on to the first weights."""
        decay = min(self.settings["ema"], (1 + self.update) / (10 + self.update))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(theirs)

    def order(self, epoch: int) -> Tensor:
        """The permutation of the training data in this epoch, the same on every process."""
        if getattr(self, "_order", (None,))[0] != epoch:
            self._order = epoch, torch.randperm(self.n_train, generator=generator(self.settings["seed"], epoch))
        return self._order[1]

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
        means = {k: float(v) / n for k, v in self.sums.items()}
        self.sums = {}
        self.bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
        if self.writer:
            for k, v in means.items():
                self.writer.add_scalar(f"train/{k}", v, self.update)
            self.writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], self.update)
            self.writer.add_scalar("train/images_per_second", self.update * self.group / self.seconds, self.update)

    def check_finite(self, measures: dict[str, Tensor | float]) -> None:
        """ValueError if the loss or the gradient is not a number: nothing is logged or saved after it."""
        if not all(math.isfinite(measures.get(k, 0.0)) for k in ("loss", "gradient_norm")):
            kept = "--resume goes on from the last save" if self.state_path.is_file() else "nothing was saved yet"
            raise ValueError(f"The loss is not a finite number any more at update {self.update}; {kept}. Start again with a "
                             f"lower --lr (it is {self.settings['lr']}) or a longer --warmup.")  # fmt: skip

    @torch.no_grad()
    def validate(self) -> None:
        """Measures the averaged weights on the validation data, every process its share; logs numbers and pictures."""
        model, batch_size = self.average.eval(), self.settings["batch_size"]
        model.set_progress(self.update / self.updates)
        mine, sums = torch.arange(self.rank, self.n_valid, self.world), {}
        for indices in mine.split(batch_size):
            for k, v in model.loss(self.valid_data.batch(indices, self.device)).items():
                sums[k] = sums.get(k, 0) + v * len(indices)
        shares = distributed.gather({k: float(v) for k, v in sums.items()})
        if self.rank:
            return
        keys = set().union(*shares)
        self.measures = {k: sum(s.get(k, 0.0) for s in shares) / self.n_valid for k in sorted(keys)}
        self.check_finite(self.measures)
        for k, v in self.measures.items():
            self.writer.add_scalar(f"valid/{k}", v, self.update)
        first = torch.arange(min(8, self.n_valid))
        for k, v in model.images(self.valid_data.batch(first, self.device)).items():
            self.writer.add_images(k, v if v.is_floating_point() else self.decode(v), self.update)

    def decode(self, grids: Tensor) -> Tensor:
        """Token grids (n,h,w) as pictures (n,3,H,W) in [0,1], by what ``grid_decoder`` gives."""
        if self._decode is None:
            made_by = self.data_meta.get("tokenizer")
            self._decode = self.grid_decoder(self.settings["tokenizer"], made_by, self.model.n_tokens, self.device)
        return self._decode(grids)

    def meta(self) -> dict:
        """What a checkpoint tells of its training."""
        command = " ".join(["python -m homework.train", *sys.argv[1:]])
        known = {"command": command, "update": self.update, "minutes": self.seconds / 60, "valid": self.measures}
        return known | self.data_meta

    def save(self, finished: bool, validated: bool) -> None:
        """Writes the averaged model, and beside it what --resume needs; a finished run needs that no more. The copy in
        float16 is written if the model has just been validated."""
        self.check_finite(self.sums)
        if self.rank:
            return
        meta = self.meta()
        checkpoint.save(self.average, self.path, meta)
        if not finished:
            plain = {k: getattr(self, k) for k in ("settings", "group", *STATE_FIELDS)}
            plain |= {"class": type(self.model).__name__, "config": self.model.config}
            weights = {k: getattr(self, k).state_dict() for k in ("model", "average", "optimizer")}
            files.write(plain | weights, self.state_path)
        if validated:  # a run that was stopped early spoils no good copy
            checkpoint.save(self.average, self.copy_path, meta, torch.float16)
        if finished:
            self.state_path.unlink(missing_ok=True)

    def restore(self, state: dict) -> None:
        """Takes up a saved state."""
        if state["group"] != self.group:
            raise ValueError(f"The run took {state['group']} samples an update, but now it would take {self.group}; "
                             f"resume it on as many processes as before.")  # fmt: skip
        for name in STATE_FIELDS:
            setattr(self, name, state[name])
        try:
            for name in ("model", "average", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"checkpoints/{self.name}.state.pth does not fit this version's {state['class']}.") from error
