"""needle/train/checkpoint.py, saver.py: a run that is killed at any moment loses no checkpoint, and ends the same.

In: a small run that saves all the time, killed 50 times at random moments. Out: a verdict.
Invariant: whatever the moment, a whole checkpoint is there, and no older than the last one that was finished; the run
that is resumed from it, again and again, ends with the bits of one that nobody killed.
Next: test_train_source.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from needle.train.checkpoint import ARRAY_FILES, INDEX, load_checkpoint

KILLS = 50
# Processes are forked from one that has everything loaded and no thread yet, so a life takes milliseconds to begin.
PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from needle.programs import DataSets
from needle.data import DigitsDataset
from needle.programs.mlp_resnet import MLPResNetProgram
from needle.run import Run
from needle.train import Callback, load_checkpoint
from needle.train.checkpoint import has_checkpoint

os.fsync = lambda file: None  # a kill is no power cut: it takes nothing from what was written
folder, kills = Path(sys.argv[1]), int(sys.argv[2])
part = DigitsDataset(train=False)
data = DataSets("digits", part, part, "digits")
sizes = {"batch_size": 20, "hidden_dim": 8, "num_blocks": 1, "seed": 1}
settings = MLPResNetProgram(data="digits", epochs=EPOCHS, eager=True, **sizes)

class Often(Callback):
    def __init__(self, run):
        self.run = run
    def after_batch(self, phase, state, totals):
        if phase == "train":
            self.run.save()
            (folder / "done").write_text(str(self.run.optimizer.t))

def life():
    np.random.seed(os.getpid())
    old = load_checkpoint(folder) if has_checkpoint(folder) else None
    run = Run.resume(old, data, folder) if old else Run(settings, data, folder)
    run.fit([Often(run)])

lived, killed, dice = 0, 0, random.Random(0)
while True:
    child = os.fork()
    if not child:
        life()
        os._exit(0)
    if killed < kills:
        time.sleep(dice.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), "a life ended by an error"
    killed += 1
    done = int((folder / "done").read_text() or 0) if (folder / "done").exists() else 0
    if has_checkpoint(folder):
        steps = load_checkpoint(folder).state["optimizer"]["step"]
        assert steps >= done, (steps, done)
        lived = max(lived, steps)
print(killed, lived)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_50_kills_lose_no_checkpoint_and_change_no_bit(tmp_path: Path) -> None:
    def run(name: str, kills: int) -> tuple[int, int]:
        command = [sys.executable, "-c", PROGRAM.replace("EPOCHS", "30"), str(tmp_path / name), str(kills)]
        (tmp_path / name).mkdir()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        killed, steps = map(int, done.stdout.split())
        return killed, steps

    assert run("whole", 0)[0] == 0
    killed, steps = run("killed", KILLS)
    assert (killed, steps > 0) == (KILLS, True)
    whole, parts = (tmp_path / name for name in ("whole", "killed"))
    assert all((whole / name).read_bytes() == (parts / name).read_bytes() for name in ARRAY_FILES)
    one, other = (load_checkpoint(folder).state for folder in (whole, parts))
    assert one["optimizer"]["step"] == other["optimizer"]["step"] == 30 * 18
    losses = [[metrics["test_loss"] for metrics in state["history"]] for state in (one, other)]
    assert losses[0] == losses[1]
    assert (whole / INDEX).exists()
