"""Files that are whole or absent: through errors, kills in the middle of a write, and many writers at once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deepwell.errors import DeepwellError
from deepwell.files import locked, open_given, read_bounded, remove_leftovers, replacing, replacing_folder, write_whole

WAITS = """
import sys, time
from pathlib import Path
from deepwell.files import replacing, replacing_folder
path, folder = Path(sys.argv[1]), sys.argv[2] == "folder"
with (replacing_folder if folder else replacing)(path) as part:
    (part / "half" if folder else part).write_bytes(b"half of it")
    print("writing", flush=True)
    time.sleep(60)
"""
REPEATS = """
import sys
from pathlib import Path
from deepwell.files import write_whole
for n in range(200):
    write_whole(Path(sys.argv[1]), (sys.argv[2] * 50_000).encode())
"""
HOLDS = """
import sys, time
from pathlib import Path
from deepwell.files import locked
with locked(Path(sys.argv[1])):
    print("holding", flush=True)
    time.sleep(60)
"""


def start(program: str, *arguments: object, say: bool = True) -> subprocess.Popen[str]:
    """A real process; if it will `say` something, only then this returns."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if say:
        assert process.stdout is not None
        assert process.stdout.readline().strip() in ("writing", "holding")
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_failing_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new folder" / "file"
    write_whole(path, b"old")

    def fail(*args: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(path.parent) == {"file"}


def test_what_is_in_the_place_is_whole_before_it_has_its_name(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", b"old")
    with replacing(tmp_path / "file") as part:
        part.write_bytes(b"half")
        assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "file").read_bytes() == b"half"
    assert (tmp_path / "file").stat().st_mode & 0o600 == 0o600
    with replacing_folder(tmp_path / "folder") as part:
        (part / "one").write_bytes(b"1")
        assert not (tmp_path / "folder").exists()
    with pytest.raises(ZeroDivisionError), replacing_folder(tmp_path / "folder") as part:
        (part / "two").write_bytes(b"%d" % (1 // 0))
    with replacing_folder(tmp_path / "other") as part:
        pass
    assert names(tmp_path / "folder") == {"one"}
    assert names(tmp_path) == {"file", "folder", "other"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "place"
    killed, living = start(WAITS, path, kind), start(WAITS, path, kind)
    assert len(names(tmp_path)) == 2
    kill(killed)
    if kind == "file":
        write_whole(path, b"new")
    else:
        with replacing_folder(path):
            pass
    try:
        assert len(names(tmp_path)) == 2, "the place, and the part of the one that lives"
    finally:
        kill(living)
    remove_leftovers(path)
    assert names(tmp_path) == {"place"}


def test_leftovers_of_other_names_are_not_touched(tmp_path: Path) -> None:
    mine = (".place.w0123456789ab.part", ".place.w0123456789ab.partial", "place.part", ".places.w0123456789ab.part")
    for name in mine:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "place")
    assert names(tmp_path) == set(mine[1:])
    remove_leftovers(tmp_path / "absent folder" / "place")


def test_two_processes_on_one_file_never_show_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writers = [start(REPEATS, path, letter, say=False) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.wait() for writer in writers] == [0, 0]
    assert seen | {path.read_bytes()} <= {b"a" * 50_000, b"b" * 50_000}
    assert names(tmp_path) == {"file"}


def test_a_lock_refuses_or_waits_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    holder = start(HOLDS, path)
    with pytest.raises(DeepwellError, match="taken"), locked(path, "taken"):
        pass
    entered = threading.Event()

    def wait() -> None:
        with locked(path):
            entered.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not entered.wait(0.2)
    kill(holder)
    assert entered.wait(10)
    waiting.join()
    with locked(path, "taken"):
        pass


def test_the_folder_before_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename, seen = os.rename, []

    def failing(old: Path, new: Path) -> None:
        seen.append(new)
        if len(seen) == 2:
            raise OSError("no")
        rename(old, new)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="no"), replacing_folder(out) as part:
        (part / "new").write_text("new")
    assert [file.name for file in out.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [out]
    monkeypatch.undo()
    with replacing_folder(out) as part:
        (part / "new").write_text("new")
    assert [file.name for file in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


def test_the_next_writer_in_a_folder_removes_what_killed_ones_left_there(tmp_path: Path) -> None:
    killed = [start(WAITS, tmp_path / kind, kind) for kind in ("file", "folder")]
    living = start(WAITS, tmp_path / "living", "file")
    for process in killed:
        kill(process)
    try:
        write_whole(tmp_path / "another", b"new")
        assert len(names(tmp_path)) == 2, "the new file, and the part of the one that lives"
    finally:
        kill(living)


def test_a_link_stays_and_so_does_who_may_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "file", tmp_path / "link"
    target.write_bytes(b"old")
    target.chmod(0o604)
    link.symlink_to(Path("real") / "file")
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o604
    assert names(tmp_path) == {"real", "link"}
    assert names(tmp_path / "real") == {"file"}


def test_a_pipe_is_read_if_it_is_open_already_and_else_not_waited_for(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"text")
    os.close(write)
    for folder in ("/dev/fd", "/proc/self/fd"):
        with open_given(Path(f"{folder}/{read}")) as file:
            assert file.read() == (b"text" if folder == "/dev/fd" else b"")
    os.close(read)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero")):
        with pytest.raises(OSError, match="is no regular file"):
            open_given(path)


@pytest.mark.parametrize("command", ["perplexity {}", "calibrate --text {} --out out", "bench --config {}"])
def test_commands_do_not_wait_for_a_pipe(command: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = [sys.executable, "-m", "deepwell", *command.format("pipe").split()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is no regular file" in done.stderr


def test_a_shell_may_give_a_command_as_a_file(tmp_path: Path) -> None:
    command = f"{sys.executable} -m deepwell bench --config <(echo 'nonsense = 1')"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_pipes_and_devices_are_neither_replaced_nor_read(tmp_path: Path) -> None:
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device, Path("/dev/null"), Path("/dev/full")):
        with pytest.raises(OSError, match="is no regular file"):
            write_whole(path, b"gone")
        with pytest.raises(OSError, match="is no regular file"):
            read_bounded(path, 10)
        assert not path.is_file()
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 10)
    assert names(tmp_path) == {"pipe", "device"}


def test_reading_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_bounded(tmp_path / "file", 10) == b"0123456789"
    with pytest.raises(OSError, match="is larger than the 9 bytes allowed"):
        read_bounded(tmp_path / "file", 9)
    with pytest.raises(OSError, match="is larger than the 0 bytes allowed"):
        read_bounded(Path("/proc/self/status"), 0)  # its size is said to be 0


def test_a_new_name_is_put_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_whole(tmp_path / "file", b"new")
    assert synced[-1] == str(tmp_path)
    with replacing_folder(tmp_path / "folder"):
        pass
    assert synced[-1] == str(tmp_path)


def test_a_lock_that_may_only_be_read_locks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    opened = os.open

    def read_only(name: Path, flags: int, *more: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(name))
        return opened(name, flags, *more)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PermissionError), locked(path):
        pass
    path.touch()
    with locked(path), pytest.raises(DeepwellError, match="taken"), locked(path, "taken"):
        pass


def test_a_full_disk_names_the_file_that_was_written(tmp_path: Path) -> None:
    """What write(2) itself refuses has no name; nothing half written is left."""
    path = tmp_path / "whole"

    def fill() -> None:
        with replacing(path), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"a")

    with pytest.raises(OSError, match="No space left on device") as refused:
        fill()
    assert refused.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
