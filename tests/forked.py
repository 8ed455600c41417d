"""Processes forked from one that has imported torch, so that a start costs little. YOLOX and the kit they import anew."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "torchvision", "torch.utils.tensorboard", "cv2", "thop", "pycocotools.coco"])

# As it was before tests put folders on it: a module of another test's folder is not found under the same name.
_PATH = [*sys.path]

seconds = 0.0  # of a core, spent by all these processes and those that they waited for


def start(python, words, folder, environ, place):
    """Start ``python PYTHON WORDS`` in a folder.

    Args:
        python: ``-m`` and a module, or a script.
        words: the words of the command line.
        folder: the working directory.
        environ: variables besides those of this process.
        place: a folder for the files ``out`` and ``err``, and ``seconds`` of a core when it has ended by itself.

    Returns:
        The `multiprocessing.Process`.
    """
    files = [str(Path(place) / name) for name in ("out", "err", "seconds")]
    before = os.environ.copy()
    os.environ["OMP_NUM_THREADS"] = "1"  # the server reads it when it starts
    try:
        process = _SERVER.Process(
            target=_main, args=(python, words, str(folder), _PATH, {**before, **environ}, *files), name="MainProcess"
        )
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return process


def run(python, words, folder, environ, timeout):
    """The same to its end, or for so many seconds; gives what `subprocess.run` gives."""
    global seconds
    with tempfile.TemporaryDirectory() as place:
        process = start(python, words, folder, environ, place)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, timeout)
        out, err, spent = (Path(place) / name for name in ("out", "err", "seconds"))
        if spent.exists():
            seconds += float(spent.read_text())
        return subprocess.CompletedProcess(words, process.exitcode, out.read_text(), err.read_text())


def _main(python, words, folder, clean, environ, out, err, spent):
    """The forked process."""
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    tests = str(Path(__file__).parent)
    path = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:] = ["" if python[0] == "-m" else str(Path(python[0]).parent), *path, *clean]
    sys.path[1:] = [entry for entry in sys.path[1:] if entry not in ("", tests) or entry in path]
    try:
        if python[0] == "-m":
            sys.argv = [python[1], *python[2:], *words]
            runpy.run_module(python[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [*map(str, python), *words]
            runpy.run_path(str(python[0]), run_name="__main__")
    finally:
        Path(spent).write_text(str(sum(os.times()[:4])))
