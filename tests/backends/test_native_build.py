"""The native kernel's object: compiled once and kept; whatever is wrong with compiler, folder or file is a sentence."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from structures.backends.native import build, objects
from structures.backends.native.build import object_file
from structures.backends.native.objects import Unavailable

TINY = 'extern "C" __attribute__((visibility("default"))) int answer() { return ANSWER; }\n'
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler here"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STRUCTURES_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def sources(tmp_path):
    return written(tmp_path / "source", 41)


def written(folder: Path, answer: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / build.MAIN).write_text(TINY.replace("ANSWER", str(answer)))
    return folder


def answer(file: Path) -> int:
    return int(ctypes.CDLL(str(file)).answer())


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def compiler(path: Path, body: str) -> str:
    """A compiler that says its version and then does `body`; "$@" are its arguments, the object's name the last."""
    return script(path, f'if [ "$1" = --version ]; then echo made up 1.0; exit; fi\n{body}')


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "native").glob("*.so"))


def test_an_object_is_compiled_once_and_kept_for_the_user_alone(cache, sources, capfd):
    first = object_file(sources=sources)
    assert answer(first) == 41
    assert "compiling the native kernel" in capfd.readouterr().err
    before = first.stat().st_mtime_ns
    assert object_file(sources=sources) == first and first.stat().st_mtime_ns == before
    assert capfd.readouterr().err == ""
    assert stat.S_IMODE(first.parent.stat().st_mode) == 0o700 and first.stat().st_mode & 0o077 == 0
    assert [f.name for f in first.parent.iterdir()] == [first.name], "nothing is left of the build"


def test_sources_flags_processor_and_compiler_each_make_an_object_of_their_own(cache, sources, tmp_path, monkeypatch):
    made = {object_file(sources=sources)}
    made.add(object_file(("-march=native", "-DOTHER=1"), sources))
    made.add(object_file(sources=written(sources, 42)))
    (sources / "part.h").write_text("// a header that changed\n")
    made.add(object_file(sources=sources))
    monkeypatch.setattr(build, "_processor", lambda: ("another processor", "x86_64", "avx9"))
    made.add(object_file(sources=sources))
    real = shutil.which("g++") or shutil.which("clang++")
    monkeypatch.setenv("CXX", compiler(tmp_path / "cc", f'exec {real} "$@"'))
    made.add(object_file(sources=sources))
    (tmp_path / "cc").write_text((tmp_path / "cc").read_text().replace("1.0", "1.1"))  # an update in place
    made.add(object_file(sources=sources))
    assert len(made) == 7 and made == set(kept(cache))


def test_an_object_built_ahead_serves_where_there_is_no_compiler(cache, sources, monkeypatch):
    made = object_file(sources=sources)
    monkeypatch.setenv("PATH", "")
    assert object_file(sources=sources) == made
    with pytest.raises(Unavailable, match=r"no C\+\+ compiler is found.*install g\+\+ or clang\+\+, or set CXX"):
        object_file(sources=written(sources, 7))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo 'native.cpp:1: error: it is Monday' >&2; exit 3", "exit status 3: native.cpp:1: error: it is Monday"),
        ("exit 0", "exit status 0: it said nothing"),
        ("kill -9 $$", "killed by signal 9"),
        ("sleep 600 & sleep 600", "stopped: its time was up"),
        ("exec /nowhere/at/all", "exit status 127"),
    ],
)
def test_a_compiler_that_fails_hangs_or_is_killed_is_one_sentence(cache, sources, tmp_path, monkeypatch, body, said):
    monkeypatch.setenv("CXX", compiler(tmp_path / "cc", body))
    monkeypatch.setattr(build, "LIMIT", 1.0)
    start = time.monotonic()
    with pytest.raises(Unavailable) as error:
        object_file(sources=sources)
    text = str(error.value)
    assert said in text and "python -m structures build" in text and "\n" not in text
    assert time.monotonic() - start < 30, "children of the compiler must not be waited for"
    assert kept(cache) == [] and not list((cache / "native").glob("build-*"))


def test_a_failed_build_is_remembered_until_it_is_asked_for_again(cache, sources, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("CXX", compiler(tmp_path / "cc", f"echo x >> {calls}; echo error: no >&2; exit 1"))
    for _ in range(3):
        with pytest.raises(Unavailable, match="error: no"):
            object_file(sources=sources)
    assert calls.read_text().count("x") == 1
    with pytest.raises(Unavailable, match="error: no"):
        object_file(sources=sources, again=True)
    assert calls.read_text().count("x") == 2
    monkeypatch.delenv("CXX")  # another compiler has not failed
    assert answer(object_file(sources=sources)) == 41


@pytest.mark.parametrize(
    ("body", "free"),
    [
        ("kill -9 $$", 2**40),
        ("echo 'fatal error: No space left on device' >&2; exit 1", 2**40),
        ("exit 1", 0),  # previously remembered: the disk had no room for the compiler's words either
    ],
)
def test_what_passes_is_not_remembered(cache, sources, tmp_path, monkeypatch, body, free):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    real = shutil.which("g++") or shutil.which("clang++")
    flag = tmp_path / "flag"
    body = f'if [ ! -e {flag} ]; then touch {flag}; {body}; fi\nexec {real} "$@"'
    monkeypatch.setenv("CXX", compiler(tmp_path / "cc", body))
    with pytest.raises(Unavailable, match=r"killed by signal 9|No space left on device"):
        object_file(sources=sources)
    assert answer(object_file(sources=sources)) == 41


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("no-such-compiler", "CXX='no-such-compiler' is not found"),
        ("g++ 'unclosed", "is no command"),
        ("silent", "does not say its version"),
        ("hanging", "its time was up"),
        ("text", "Exec format error"),
    ],
)
def test_a_compiler_named_by_the_user_is_the_only_one_tried(cache, sources, tmp_path, monkeypatch, named, said):
    made = {"silent": "exit 1", "hanging": "sleep 600"}
    if named in made:
        named = script(tmp_path / named, made[named])
    if named == "text":
        (tmp_path / "text").write_bytes(b"\x7fELF no program")
        (tmp_path / "text").chmod(0o755)
        named = str(tmp_path / "text")
    monkeypatch.setenv("CXX", named)
    monkeypatch.setattr(build, "ASK_LIMIT", 0.5)
    with pytest.raises(Unavailable, match=said):
        object_file(sources=sources)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def one_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def writable_by_all(file: Path) -> None:
    file.chmod(0o777)


def a_link(file: Path) -> None:
    other = file.with_name("elsewhere")
    file.rename(other)
    file.symlink_to(other)


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("attack", [cut_short, emptied, one_bit, writable_by_all, a_link, a_pipe])
def test_an_object_damaged_or_open_to_others_is_built_anew(cache, sources, attack, capfd):
    made = object_file(sources=sources)
    attack(made)
    capfd.readouterr()
    again = object_file(sources=sources)
    assert "compiling" in capfd.readouterr().err, "it was used as it was found"
    assert again.is_file() and not again.is_symlink() and again.stat().st_mode & 0o077 == 0
    assert answer(again) == 41


def test_a_sound_object_is_not_built_anew(cache, sources, capfd):
    made = object_file(sources=sources)
    capfd.readouterr()
    made.chmod(0o770)  # a group's umask
    assert object_file(sources=sources) == made and made.stat().st_mode & 0o077 == 0
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_strangers_object_or_folder_is_never_used(cache, sources, capfd):
    made = object_file(sources=sources)
    os.chown(made, 12345, -1)
    capfd.readouterr()
    object_file(sources=sources)
    assert "compiling" in capfd.readouterr().err
    os.chown(cache / "native", 12345, -1)
    with pytest.raises(Unavailable, match=r"belongs to another user.*STRUCTURES_CACHE"):
        object_file(sources=sources)
    os.chown(cache / "native", 0, -1)
    os.chown(cache, 12345, -1)
    with pytest.raises(Unavailable, match=r"belongs to another user.*STRUCTURES_CACHE"):
        object_file(sources=sources)


def test_folders_that_everyone_can_write_are_refused_and_the_groups_narrowed(cache, sources):
    object_file(sources=sources)
    (cache / "native").chmod(0o770)
    object_file(sources=sources)
    assert stat.S_IMODE((cache / "native").stat().st_mode) == 0o700
    (cache / "native").chmod(0o777)
    with pytest.raises(Unavailable, match=r"writable by everyone"):
        object_file(sources=sources)
    (cache / "native").chmod(0o700)
    cache.chmod(0o777)
    with pytest.raises(Unavailable, match=r"writable by everyone"):
        object_file(sources=sources)
    cache.chmod(0o1777)  # as /tmp: nobody can exchange what is ours
    object_file(sources=sources)


def a_file(cache: Path) -> None:
    cache.write_text("no folder")


def a_broken_link(cache: Path) -> None:
    cache.symlink_to("/proc/nowhere/at/all")


@pytest.mark.parametrize("make", [a_file, a_broken_link])
def test_a_cache_folder_that_cannot_be_made_is_one_sentence(cache, sources, make):
    make(cache)
    with pytest.raises(Unavailable, match=r"cannot be kept: .*; set STRUCTURES_CACHE to a folder of your own"):
        object_file(sources=sources)


def test_a_read_only_home_is_one_sentence(sources, monkeypatch):
    monkeypatch.delenv("STRUCTURES_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1")
    with pytest.raises(Unavailable, match="cannot be kept"):
        object_file(sources=sources)


def test_no_home_is_one_sentence_and_makes_no_folder_called_tilde(sources, monkeypatch, tmp_path):
    monkeypatch.delenv("STRUCTURES_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where neither HOME nor the user is known
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unavailable, match="no home folder is known"):
        object_file(sources=sources)
    assert not (tmp_path / "~").exists()


def test_a_full_disk_is_one_sentence_and_is_not_remembered(cache, sources, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(Unavailable, match="No space left on device"):
            object_file(sources=sources)
    assert answer(object_file(sources=sources)) == 41


def test_missing_sources_are_one_sentence(cache, tmp_path):
    with pytest.raises(Unavailable, match="sources are missing"):
        object_file(sources=tmp_path / "none")


def test_folders_of_killed_builds_are_removed_and_those_at_work_are_not(cache, sources):
    old, young = objects.folder() / "build-old", objects.folder() / "build-young"
    old.mkdir()
    young.mkdir()
    (old / "kernel.so").write_text("half")
    os.utime(old, (0, 0))
    object_file(sources=sources)
    assert not old.exists() and young.exists()


BUILD = """
import sys
from pathlib import Path
from structures.backends.native.build import object_file
print(object_file(sources=Path(sys.argv[1])))
"""


def test_processes_and_threads_that_build_at_once_all_get_a_whole_object(cache, sources):
    command = [sys.executable, "-c", BUILD, str(sources)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in "ab"]
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(answer(object_file(sources=sources)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [41] * 4
    for process in processes:
        out, _ = process.communicate()
        assert process.returncode == 0 and answer(Path(out.strip())) == 41


def test_a_process_killed_while_it_builds_leaves_nothing_that_is_loaded(cache, sources, tmp_path, monkeypatch):
    pid = tmp_path / "pid"
    body = f'for last in "$@"; do :; done\nprintf half > "$last"; echo $$ > {pid}; exec sleep 600'
    monkeypatch.setenv("CXX", compiler(tmp_path / "cc", body))
    with subprocess.Popen([sys.executable, "-c", BUILD, str(sources)], stderr=subprocess.DEVNULL) as process:
        while not pid.exists() or not pid.read_text().strip():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    monkeypatch.delenv("CXX")
    assert kept(cache) == []
    assert answer(object_file(sources=sources)) == 41
