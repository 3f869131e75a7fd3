"""Several processes: their figures and weights are those of one; one that dies or hangs ends the others in a sentence."""

import os
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import GRID, TINY, batch_for, build, run, sentence
from hypothesis import given
from hypothesis import strategies as st

from homework.core import checkpoint, registry
from homework.core.processes import rank, world_size
from homework.datasets.kinds import DATASETS
from homework.tokenizers.vector_quantizer import VectorQuantizer
from homework.training import distributed, sharded, validation

BSQ = "BSQPatchAutoEncoder"
# 12 updates an epoch on one process, 6 on two; the process number VICTIM does something in its update AT, once
VICTIM = """
import os, signal, sys, time
from pathlib import Path
from homework.core import cli
from homework.core.processes import rank
from homework.train import train
from homework.training.loop import Run

at, victim, what = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
step, once = Run.step, Path("done")
if "apart" in os.environ:  # each process on a disk of its own
    os.makedirs(f"disk{rank()}", exist_ok=True)
    os.chdir(f"disk{rank()}")

def changed(self):
    if self.update == at and rank() == victim and not once.exists():
        once.touch()
        os.kill(os.getpid(), getattr(signal, what))
    return step(self)

Run.step = changed
cli.main("train", train)
"""


def typed(data: Path, model: str = BSQ, **options) -> list[str]:
    common = {"data": data, "batch_size": 2, "epochs": 2, "device": "cpu", "warmup": 4, "ema": 0.9, "augment": False}
    return [model, *(f"--{k}={v}" for k, v in (common | TINY[model] | options).items())]


def torchrun(cwd: Path, *arguments: object, **options) -> subprocess.CompletedProcess:
    return run(*arguments, cwd=cwd, processes=2, **options)


def alone(cwd: Path, *arguments: object) -> subprocess.CompletedProcess:
    return run("-m", "homework.train", *arguments, cwd=cwd)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(path).state_dict()


def forked(function: Callable[[], object], n: int = 2) -> list[SimpleNamespace]:
    """``n`` processes together, each forked off this one: what ``function`` returned in each, or the "error" it raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for i in range(n):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            torch.set_num_threads(1)
            os.environ |= {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1",
                           "MASTER_PORT": str(port)}  # fmt: skip
            found: dict = {"result": None, "error": None}
            try:
                found["result"] = function()
            except Exception as error:
                found["error"] = f"{type(error).__name__}: {error}"
            with open(write, "wb") as pipe:
                pickle.dump(found, pipe)
            os._exit(0)
        os.close(write)
        children.append((child, read))
    results = []
    for child, read in children:
        with open(read, "rb") as pipe:
            content = pipe.read()
        os.waitpid(child, 0)
        results.append(SimpleNamespace(**(pickle.loads(content) if content else {"result": None, "error": "killed"})))
    return results


# --- figures of a whole data set ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [BSQ, "VQPatchAutoEncoder", "PatchAutoEncoder", "AutoregressiveModel"])
def test_figures_do_not_depend_on_the_batch(name, data):
    model = build(name).eval()
    samples = DATASETS[registry.model_class(name).data]("valid", root=data)
    found = [validation.measure(model, samples, 7, batch_size, model.device) for batch_size in (1, 2, 3, 7, 16)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
    if name in (BSQ, "VQPatchAutoEncoder"):
        tokens = model.encode_index(samples.batch(torch.arange(7)))
        n, counts = tokens.numel(), tokens.unique(return_counts=True)[1].double()
        assert found[0]["usage"] == pytest.approx(len(counts) / model.n_tokens)
        assert found[0]["entropy"] == pytest.approx(float((counts / n * (n / counts).log2()).sum()))
    if "psnr" in found[0]:
        assert found[0]["psnr"] == pytest.approx(-10 * torch.tensor(found[0]["mse"]).log10().item())


@given(st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=5))
def test_tokens_are_counted_over_parts(parts):
    found = validation.counted([torch.tensor(part, dtype=torch.int64).unique(return_counts=True) for part in parts])
    whole = torch.tensor(sum(parts, []), dtype=torch.int64).unique(return_counts=True)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_two_processes_measure_what_one_does(data, n):
    """With one sample, the second process has none."""
    model, samples = build(BSQ).eval(), DATASETS["images"]("valid", root=data)

    def measure():
        distributed.join()
        figures = validation.measure(model, samples, n, 2, model.device)
        distributed.cleanup()
        return figures

    first, second = forked(measure)
    assert second.result is None and second.error is None
    assert first.result == pytest.approx(validation.measure(model, samples, n, 2, model.device), rel=1e-5)


# --- the same weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_the_same_bits_whether_averaged_meanwhile_or_after(accumulate):
    def trained(overlap: bool) -> dict[str, torch.Tensor]:
        model = build("AutoregressiveModel").train()
        optimizer, gradients = torch.optim.AdamW(model.parameters()), distributed.Gradients(model, model.loss, overlap)
        for update in range(3):
            optimizer.zero_grad(set_to_none=True)
            for a in range(accumulate):
                batch = batch_for(model, 2, seed=10 * update + 2 * a + rank())
                (gradients.loss(batch, a == accumulate - 1)["loss"] / accumulate).backward()
            gradients.average()
            optimizer.step()
        gradients.close()
        return {k: v.numpy().copy() for k, v in model.state_dict().items()}

    def both():
        distributed.join()
        found = trained(True), trained(False)
        distributed.cleanup()
        return found

    (first, second), start = forked(both), build("AutoregressiveModel").state_dict()
    assert not first.error and not second.error, (first.error, second.error)
    for k, v in first.result[0].items():
        assert all((v == other[k]).all() for other in (first.result[1], *second.result)), k
    assert any((v != start[k].numpy()).any() for k, v in first.result[0].items())


@pytest.mark.parametrize("world, accumulate", [(1, 2), (2, 1), (2, 2)])
def test_a_vector_quantizer_sees_the_whole_update(world, accumulate):
    """Entries are restarted at vectors of all batches of an update, whoever has them: 24 an update, in 1, 2 or 4 parts."""

    def updated() -> dict:
        distributed.join()
        torch.manual_seed(0)
        made = VectorQuantizer(16, 3, ema_decay=0.9, restart_below=0.5).train()
        for update in range(10):
            x = torch.randn(24, 3, generator=torch.Generator().manual_seed(update)) + update / 10
            for part in x.view(-1, world_size(), 24 // world_size() // parts, 3)[:, rank()]:
                made(part)
            made.after_update()
        distributed.cleanup()
        return {k: v.numpy() for k, v in made.state_dict().items()}

    parts = 1
    expected = updated()
    parts = accumulate
    for one in forked(updated, world) if world > 1 else [SimpleNamespace(error=None, result=updated())]:
        assert one.error is None
        for k, v in expected.items():
            assert one.result[k] == pytest.approx(v, abs=1e-5), k


def test_a_som_is_laid_out_over_the_whole_update():
    def laid_out():
        distributed.join()
        made = build("SOM").train()
        x = torch.randn(4, *GRID, 3, generator=torch.Generator().manual_seed(5))
        for part in x.view(-1, world_size(), parts, *GRID, 3)[:, rank()]:
            made.loss(part)
        made.after_update()
        distributed.cleanup()
        return made.codebook.detach().numpy().copy()

    parts = 4
    expected = laid_out()
    for parts in 2, 1:  # images at once: two processes in one step, and in two  # noqa: B007
        first, second = forked(laid_out)
        assert not first.error and (first.result == second.result).all()
        assert first.result == pytest.approx(expected, abs=1e-5)
    assert expected.std() > 0.1


# --- failing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 2])
def test_who_is_gone_is_named(monkeypatch, how, victim):
    """Killed, or stopped, after which the others wait for it until their patience ends. The first one holds the store."""
    monkeypatch.setattr(distributed, "BEAT", 0.4)

    def interrupted():
        distributed.join(timeout=5.0)
        for i in range(100):
            if i == 5 and rank() == victim:
                if how == signal.SIGSTOP and os.fork() == 0:  # who wakes it in the end
                    parent = os.getppid()
                    time.sleep(10)
                    os.kill(parent, signal.SIGKILL)
                    os._exit(0)
                os.kill(os.getpid(), how)
            distributed.any_of(False)

    found = forked(interrupted, 3)
    others = [one.error for i, one in enumerate(found) if i != victim]
    if how == signal.SIGSTOP and victim == 0:  # the store does not answer
        assert all("of 3 has ended or hangs" in error for error in others), others
    else:
        assert all(f"ConnectionError: Process {victim} of 3 has ended or hangs" in error for error in others), others


def test_an_error_of_the_first_process_is_everyones():
    def failing():
        distributed.join()
        try:
            return distributed.of_first(lambda: 1 / 0 if rank() else ["a", torch.arange(3)]), distributed.of_first(broken)
        finally:
            distributed.cleanup()

    def broken():
        raise ValueError("no such run")

    assert [one.error for one in forked(failing)] == ["ValueError: no such run"] * 2


def test_a_run_is_stopped_at_once_and_goes_on_with_other_processes_and_disks(data, tmp_path):
    (tmp_path / "victim.py").write_text(VICTIM)
    one = tmp_path / "one"
    one.mkdir()
    whole = alone(one, *typed(data, accumulate=2, name="a"))
    assert whole.returncode == 0, whole.stderr
    expected = weights(one / "checkpoints" / "a.pth")

    stopped = torchrun(tmp_path, "victim.py", 4, 1, "SIGTERM", *typed(data, name="a"), apart="1")
    assert "Saved at update 5 of 12" in stopped.stderr, stopped.stderr  # though the second process alone was asked
    assert [path.name for path in tmp_path.glob("disk*/checkpoints/*.state.pth")] == ["a.state.pth"]
    again = torchrun(tmp_path, "victim.py", 7, 0, "SIGINT", BSQ, "--name", "a", "--resume", apart="1")
    assert "Saved at update 8 of 12" in again.stderr, again.stderr
    last = alone(tmp_path / "disk0", BSQ, "--name", "a", "--resume")
    assert last.returncode == 0, last.stderr
    found = weights(tmp_path / "disk0" / "checkpoints" / "a.pth")
    for k, v in expected.items():
        assert (found[k] - v).abs().max() < 1e-5, k


# --- models that are shared out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, ema",
                         [("AutoregressiveModel", 0.9), ("AutoregressiveModel", 0), (BSQ, 0.9), ("PatchAutoEncoder", 0.9)])
def test_a_model_that_is_shared_out_trains_as_a_whole_one(data, tmp_path, model, ema):
    """Stopped, it resumes shared out, and then whole on one process."""
    (tmp_path / "victim.py").write_text(VICTIM)
    (tmp_path / "one").mkdir()
    # saved by the clock, too, on which processes do not agree
    options = typed(data, model, ema=ema, name="a", batch_size=1, epochs=1, clip=0.01, save_every=0.001)
    whole = alone(tmp_path / "one", *options, "--accumulate=4")
    assert whole.returncode == 0, whole.stderr
    expected = weights(tmp_path / "one" / "checkpoints" / "a.pth")

    stopped = torchrun(tmp_path, "victim.py", 2, 1, "SIGTERM", *options, "--accumulate=2", "--fsdp")
    assert "Saved at update 3 of 6" in stopped.stderr, stopped.stderr
    assert weights(tmp_path / "checkpoints" / "a.pth").keys() == expected.keys()
    (tmp_path / "done").unlink()
    again = torchrun(tmp_path, "victim.py", 4, 0, "SIGTERM", model, "--name", "a", "--resume")
    assert "Saved at update 5 of 6" in again.stderr, again.stderr
    last = alone(tmp_path, model, "--name", "a", "--resume", "--nofsdp")
    assert last.returncode == 0, last.stderr
    for k, v in weights(tmp_path / "checkpoints" / "a.pth").items():
        assert (expected[k].float() - v.float()).abs().max() < 1e-5, k


def test_a_part_of_each_weight_is_here():
    def parts():
        distributed.join()
        model = build("AutoregressiveModel")
        n, state = sum(p.numel() for p in model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
        sharded.share_out(model, torch.device("cpu"))
        here = sum(p.to_local().numel() for p in model.parameters())
        loss = model.loss(batch_for(model, 2))["loss"]
        again = sum(p.to_local().numel() for p in model.parameters())  # after the forward pass, too
        whole = sharded.whole(model)
        same = whole is model or all(torch.equal(v, state[k]) for k, v in whole.state_dict().items())
        result = n, here, again, loss.item(), same
        distributed.cleanup()
        return result

    first, second = forked(parts)
    assert not first.error and not second.error, (first.error, second.error)
    (n, here, again, loss, same), (_, there, *_) = first.result, second.result
    model = build("AutoregressiveModel")
    assert here + there == n and 0.4 * n < there <= here == again and same
    assert loss == pytest.approx(model.loss(batch_for(model, 2))["loss"].item(), rel=1e-6)


@pytest.mark.parametrize("model, options, processes, message", [
    (BSQ, {}, 1, "--fsdp shares a model out among several processes, but there is one"),
    ("VQPatchAutoEncoder", {}, 2, "--fsdp is not for VQPatchAutoEncoder, whose weights also move between updates"),
    (BSQ, {"compile": True}, 2, "--fsdp and --compile do not go together"),
])  # fmt: skip
def test_what_cannot_be_shared_out_is_refused(model, options, processes, message, data, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharded, "world_size", lambda: processes)
    assert message in sentence(command("train", *typed(data, model, **options), "--fsdp"))
    assert not Path("checkpoints").exists() and not Path("logs").exists()


@pytest.mark.parametrize("arguments, message", [
    (["compress", "t.pth", "p.pth", "images", "a.hwa"], "One archive is not shared out among the 2 processes; name shards"),
    (["generation", "cascade"], "A cascade's sampling is not shared out among the 2 processes; leave torchrun out"),
    (["evaluate", "samples", "images"], "The measuring of samples is not shared out among the 2 processes"),
])  # fmt: skip
def test_what_each_process_would_do_is_refused(arguments, message, command, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert message in sentence(command(*arguments))


def test_torchrun_starts_a_killed_process_again(data, tmp_path):
    (tmp_path / "victim.py").write_text(VICTIM)
    (tmp_path / "whole").mkdir()
    whole = torchrun(tmp_path / "whole", "-m", "homework.train", *typed(data, name="a"))
    assert whole.returncode == 0, whole.stderr
    done = torchrun(tmp_path, "victim.py", 3, 1, "SIGKILL", *typed(data, name="a"), options=("--max-restarts", "1"))
    assert done.returncode == 0 and "Resuming checkpoints/a.pth at update 0 of 12" in done.stderr, done.stderr
    mine, theirs = weights(tmp_path / "checkpoints" / "a.pth"), weights(tmp_path / "whole" / "checkpoints" / "a.pth")
    assert all(torch.equal(v, theirs[k]) for k, v in mine.items())


def test_a_training_that_had_ended_ends_again_when_torchrun_restarts_it(data, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", *typed(data, name="a")).returncode == 0
    before = Path("checkpoints/a.pth").read_bytes()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    done = command("train", *typed(data, name="a"))
    assert done.returncode == 0 and "The training had ended before it was started again." in done.stderr, done.stderr
    assert Path("checkpoints/a.pth").read_bytes() == before and not list(Path("checkpoints").glob("*.state.pth"))


@pytest.mark.parametrize("options, fresh", [([], True), (["--fsdp"], False)])
def test_a_killed_process_ends_the_training_in_a_sentence_that_says_how_to_go_on(data, tmp_path, options, fresh):
    (tmp_path / "victim.py").write_text(VICTIM)
    start = time.monotonic()
    typed_in = [*typed(data, epochs=1000, name="a"), *options]
    done = torchrun(tmp_path, "victim.py", 3, 1, "SIGKILL", *typed_in, fresh=fresh)
    assert done.returncode != 0 and time.monotonic() - start < 120  # torchrun's own patience alone would be 30 s
    assert "error: Process 1 of 2 has ended or hangs" in done.stderr and "--resume" in done.stderr
    assert "[rank" not in done.stderr and (tmp_path / "checkpoints" / "a.state.pth").is_file()


def test_a_share_that_does_not_come_out_even_is_refused(data, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim.py").write_text(VICTIM)
    stopped = torchrun(tmp_path, "victim.py", 4, 1, "SIGTERM", *typed(data, name="a", batch_size=1))
    assert "Saved at" in stopped.stderr
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(distributed, "join", lambda *_: None)
    monkeypatch.setattr(distributed, "broadcast", lambda value: value)
    monkeypatch.setattr(distributed, "share", lambda model: None)
    message = sentence(command("train", BSQ, "--name", "a", "--resume"))
    assert "This run takes 2 samples an update, 1 at once, which 3 processes cannot share equally; use 2" in message


