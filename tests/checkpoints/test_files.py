"""Checkpoint files: whole or not there, whatever happens while they are written; and read without running code."""

import errno
import os
import pickle
import signal

import pytest
import torch

from vr1.checkpoints.files import AtomicCheckpointIO, read_checkpoint
from vr1.errors import UserError

OLD = {"state_dict": {"weight": torch.arange(50_000.0)}, "global_step": 1}
NEW = {"state_dict": {"weight": torch.ones(50_000)}, "global_step": 2}


@pytest.fixture
def last(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(OLD, path)
    return path


def step_of(path):
    return AtomicCheckpointIO().load_checkpoint(path)["global_step"]


def test_reads_what_it_wrote(last):
    torch.testing.assert_close(AtomicCheckpointIO().load_checkpoint(last), OLD)
    AtomicCheckpointIO().save_checkpoint(NEW, last)
    torch.testing.assert_close(torch.load(last, weights_only=True), NEW)
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


class KillsAfter:
    """A file that takes so many bytes, and then ends the process as ``kill -9`` would."""

    def __init__(self, file, count):
        self.file, self.left = file, count

    def write(self, data):
        self.left -= len(bytes(data))
        if self.left < 0:
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("count", [0, 100, 5_000, 100_000, 200_000])
def test_a_kill_in_the_middle_of_a_save_leaves_the_last_one(last, count, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda checkpoint, file: save(checkpoint, KillsAfter(file, count)))
    child = os.fork()
    if not child:
        AtomicCheckpointIO().save_checkpoint(NEW, last)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    monkeypatch.undo()
    assert step_of(last) == 1
    assert [path.name for path in last.parent.glob("*.ckpt")] == ["last.ckpt"], "a torn file is no checkpoint"
    AtomicCheckpointIO().save_checkpoint(NEW, last)
    assert step_of(last) == 2
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"], "what the kill left is cleared away"


class FullAfter(KillsAfter):
    """A file on a disk that is full after so many bytes."""

    def write(self, data):
        self.left -= len(bytes(data))
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


@pytest.mark.parametrize("count", [0, 100, 100_000])
@pytest.mark.parametrize("name", ["last.ckpt", "next.ckpt"])
def test_a_full_disk_is_named_and_the_last_one_kept(last, name, count, monkeypatch):
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda checkpoint, file: save(checkpoint, FullAfter(file, count)))
    with pytest.raises(
        UserError, match=rf"{name}: the disk is full, .* the last good one is .*last\.ckpt; free some space"
    ):
        AtomicCheckpointIO().save_checkpoint(NEW, last.with_name(name))
    monkeypatch.undo()
    assert step_of(last) == 1
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


def test_other_faults_are_not_called_a_full_disk(last, monkeypatch):
    def fail(*_):
        raise RuntimeError("cannot pickle this")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="cannot pickle this"):
        AtomicCheckpointIO().save_checkpoint(NEW, last)


class Harm:
    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("weights_only", [None, True])
def test_code_in_a_checkpoint_is_not_run(tmp_path, weights_only):
    harm = Harm()
    harm.folder = str(tmp_path / "made by the file")
    torch.save({"state_dict": {}, "callbacks": harm}, tmp_path / "harm.ckpt")
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(harm))
    for name in ("harm.ckpt", "plain.ckpt"):
        with pytest.raises(ValueError, match=rf"{name} (contains more than|is damaged)"):
            AtomicCheckpointIO().load_checkpoint(tmp_path / name, weights_only=weights_only)
    assert not (tmp_path / "made by the file").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_named(last, share):
    whole = last.read_bytes()
    last.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"last\.ckpt .*damaged"):
        read_checkpoint(last)


def test_other_files_are_named(tmp_path):
    torch.save([1, 2], tmp_path / "list.ckpt")
    for path, message in (
        (tmp_path / "list.ckpt", "no state_dict"),
        (tmp_path, "folder of shards"),
        (tmp_path / "no", "not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)
