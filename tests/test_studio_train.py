"""The tab Train of homework.studio: its commands and processes, without Gradio; and the page itself, in Chromium."""

import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, build, files
from torch.utils.tensorboard import SummaryWriter

from homework.core import checkpoint
from homework.core.registry import model_class
from homework.evaluation import logs
from homework.studio_tabs import models, runs
from homework.studio_tabs.runs import Options, Run, Runs

TINIEST = " ".join(f"--{name} {value}" for name, value in TINY["BSQPatchAutoEncoder"].items())
LONG = Options("BSQPatchAutoEncoder", "data/sample", epochs=10_000, batch_size=3, further=f"--image_size 20x30 {TINIEST}")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder in which trainings run, as of a fresh clone: it has but the samples."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture
def trainings(place):
    """Runs that are over at the end of the test."""
    table = Runs(place / "output")
    yield table
    table.close()


def wait(until, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)
    return found


def points(run: Run) -> list[tuple[int, float]]:
    run.log.read()
    return run.log.curves().get("train/loss", [])


# --- without Gradio -------------------------------------------------------------------------------------------------------


def test_a_log_is_read_while_it_is_written(tmp_path):
    log = logs.Log(tmp_path / "run")
    log.read()
    assert log.curves() == {} and log.pictures() == {} and log.position() == (0, 0)
    with SummaryWriter(tmp_path / "run", flush_secs=1) as writer:
        for update in range(10, 31, 10):
            writer.add_scalar("train/loss", 1 / update, update)
            writer.add_images("samples", torch.full((2, 3, 4, 5), update / 255), update)
            writer.flush()
            log.read()
            assert log.position() == (update, update)
            assert log.curves()["train/loss"][-1] == (update, pytest.approx(1 / update))
            assert abs(int(np.median(log.pictures()["samples"])) - update) <= 1
    assert len(log.curves()["train/loss"]) == 3 and list(log.pictures()) == ["samples"]
    with SummaryWriter(tmp_path / "run", purge_step=21) as writer:  # of a run that was resumed at 20
        writer.add_scalar("train/loss", 5, 25)
    log.read()
    assert [update for update, _ in log.curves()["train/loss"]] == [10, 20, 25]


def test_the_command_has_what_was_chosen():
    further = "--seed 3 --noaugment"
    options = Options("VQVAE", "mine", epochs=2.0, batch_size=4, lr=1e-3, output="mine/a b.pth", further=further)
    expected = "python -m homework.train VQVAE --data mine --epochs 2 --batch_size 4 --lr 0.001 --output 'mine/a b.pth'"
    assert runs.script(options) == f"{expected} {further}"
    first, second = runs.script(Options("SOM", "data/sample"), "name").splitlines()
    assert first == "python -m homework.data import data/sample --dir studio/samples --valid_every 6"
    assert second == "python -m homework.train SOM --data studio/samples --output studio/name.pth --name name"


@pytest.mark.parametrize("further", ["--seed 3 --name x", "--batch-size=3", "--resume", "'--seed 3"])
def test_further_options_that_the_page_sets_itself_are_a_sentence(trainings, place, further):
    with pytest.raises(ValueError, match="leave it out there|quotation mark"):
        trainings.start(Options("BSQPatchAutoEncoder", "data/sample", further=further))
    assert not trainings.by_name and not (place / "studio").exists()


@pytest.mark.parametrize("model", [name for name in TINY if model_class(name).data == "images"])
def test_quick_options_are_options_of_the_model(model):
    words = shlex.split(runs.quick_options(model).removeprefix(runs.QUICK))
    options = {name.removeprefix("--"): int(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    frames = torch.zeros(1, 64, 96, 3)
    assert model_class(model)(**options).loss(frames)["loss"].item() >= 0
    assert runs.quick_options("AutoregressiveModel") == runs.quick_options("a.pth") == ""


def test_a_training_starts_stops_and_resumes_and_writes_nowhere_else(trainings, place):
    shipped = {path: path.stat().st_mtime_ns for path in checkpoint.PRETRAINED.iterdir()}
    run = trainings.start(LONG)
    assert run.message() == "Starting ..." and trainings.unfinished() == [run.name]
    assert trainings.resume(run.name) is run  # for whoever comes back
    wait(lambda: len(points(run)) > 2)
    run.stop()
    run.stop()  # must not end it before it has saved
    wait(lambda: not run.is_live)
    assert run.message().startswith("Stopped. Saved at update") and run.can_resume
    last = points(run)[-1][0]
    again = trainings.resume(run.name)
    wait(lambda: points(again)[-1][0] > last + 10)
    assert trainings.close() == [again] and "Saved at update" in again.message()
    updates = [update for update, _ in points(again)]
    assert updates == sorted(set(updates)) and again.log.pictures()
    written = {f"checkpoints/{run.name}.pth", f"checkpoints/{run.name}.state.pth", f"studio/{run.name}.pth"}
    rest = {name for name in files(place) if not name.startswith(("logs/", "studio/samples/", "output/", "data/"))}
    assert rest == written and checkpoint.load(f"studio/{run.name}.pth", "BSQPatchAutoEncoder")
    assert shipped == {path: path.stat().st_mtime_ns for path in checkpoint.PRETRAINED.iterdir()}


def test_the_commands_sentence_is_the_message_and_the_pretrained_models_stay(trainings):
    forbidden = str(checkpoint.PRETRAINED / "BSQPatchAutoEncoder.pth")
    wrong = {"--batch_size is -1, but must be an integer of at least 1.": Options("VQVAE", "data/sample", batch_size=-1),
             "the pretrained models stay as they are": Options("VQVAE", "data/sample", output=forbidden)}  # fmt: skip
    for sentence, options in wrong.items():
        run = trainings.start(options)
        wait(lambda run=run: not run.is_live)
        assert sentence in run.message() and "error:" not in run.message() and not run.can_resume


def test_two_trainings_at_once_have_names_of_their_own(trainings):
    one, two = (trainings.start(LONG) for _ in range(2))
    assert one.name != two.name and set(trainings.unfinished()) == {one.name, two.name}
    one.stop()
    wait(lambda: not one.is_live)
    assert two.is_live and one.message().startswith("Stopped. ") and not two.stopped


# --- the page -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(place):
    """The page's address, and its trainings."""
    pytest.importorskip("gradio", reason='there is no gradio; pip install "homework[studio]"')
    with pytest.MonkeyPatch.context() as context:
        context.setenv("GRADIO_TEMP_DIR", str(place / "temporary"))
        for variable in "no_proxy", "NO_PROXY":  # to be put back
            context.setenv(variable, "")
        from homework.studio_tabs import page

        pair = build("BSQPatchAutoEncoder").eval(), build("AutoregressiveModel").eval()
        shared = models.load(("t.pth", "p.pth"), *pair, [], place / "temporary")
        server, address = page.launch(shared, "127.0.0.1", None)
        yield address, shared.runs
        server.close(verbose=False)
        shared.runs.close()


def opened(browser, address: str):
    window = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    window.set_default_timeout(180_000)
    window.goto(address)
    window.get_by_role("tab", name="Train").click()
    return window


def says(window, text: str) -> None:
    window.wait_for_function("text => document.querySelector('#training textarea').value.includes(text)", arg=text)


def test_the_page_trains_stops_and_resumes_while_another_person_errs(served, chromium):
    address, trainings = served
    window, other = opened(chromium, address), opened(chromium, address)
    window.get_by_label("Epochs").fill("10000")
    window.get_by_label("Further options").fill(LONG.further)
    window.locator(".cm-content:visible", has_text="--epochs 10000").wait_for()
    window.get_by_role("button", name="Train", exact=True).click()
    window.locator(".cm-content:visible", has_text="--name").wait_for()
    other.get_by_label("Batch size").fill("-1")
    other.get_by_role("button", name="Train", exact=True).click()
    says(other, "--batch_size is -1, but must be an integer of at least 1.")
    window.locator("#curve path[stroke][aria-roledescription='line mark']").first.wait_for()
    window.locator("#pictures img").first.wait_for()
    window.reload()  # finds it again
    window.get_by_role("tab", name="Train").click()
    says(window, "training BSQPatchAutoEncoder")
    window.get_by_role("button", name="Stop").locator("visible=true").click()
    says(window, "Stopped. Saved at update")
    (name,) = trainings.unfinished()
    window.get_by_label("A run that is not finished").click()
    window.get_by_role("option", name=name).click()
    window.get_by_role("button", name="Resume").click()
    window.locator(".cm-content:visible", has_text="--resume").wait_for()
    says(window, "training BSQPatchAutoEncoder")
    assert trainings.by_name[name].is_live and not other.locator("#curve canvas").count()
    other.get_by_label("Further options").fill("--name mine")
    other.get_by_role("button", name="Train", exact=True).click()
    other.locator(".toast-body", has_text="--name is among the further options").first.wait_for()
    assert "Traceback" not in other.content() + window.content()
    window.context.close()
    other.context.close()
    assert trainings.by_name[name].is_live  # it needs no page
