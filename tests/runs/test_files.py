"""Files are whole or as they were: also on a full disk, and after a kill."""

import errno
import os

import pytest
import torch

from yolox_loss_patch.errors import RunError
from yolox_loss_patch.runs import files
from yolox_loss_patch.runs.files import WriteError, refuse_links, remove_unfinished, save_atomically, write_atomically


class Full:
    """A file on a disk that is full after some bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.fixture
def full_disk(monkeypatch):
    fdopen = os.fdopen
    monkeypatch.setattr(files.os, "fdopen", lambda *args: Full(fdopen(*args), 5000))


@pytest.mark.parametrize(
    "write", [lambda path: write_atomically(path, bytes(6000)), lambda path: save_atomically(torch.zeros(3000), path)]
)
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path, full_disk, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(WriteError, match=r"file' cannot be written: No space left on device\. Make room there"):
        write(path)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [("file", b"old")]


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(WriteError, match="cannot be written: No such file or directory"):
        write_atomically(tmp_path / "nowhere" / "file", b"new")


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "outside").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "outside")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "outside").read_bytes() == b"precious" and not (tmp_path / "file").is_symlink()


def test_links_that_stay_inside_or_are_of_other_tools_do_no_harm(tmp_path):
    run = tmp_path / "run"
    (run / "wandb").mkdir(parents=True)
    (run / "wandb" / "debug.log").symlink_to(tmp_path / "cache.log")
    (run / "best_ckpt.pth").symlink_to("latest_ckpt.pth")
    refuse_links(run)
    (run / "tensorboard" / "deep").mkdir(parents=True)
    (run / "tensorboard" / "deep" / "events").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="events' is a link to"):
        refuse_links(run)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    for name in (".latest_ckpt.pth.abc123.new", "latest_ckpt.pth", ".resume_state.pth.next"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".resume_state.pth.next", "latest_ckpt.pth"]
