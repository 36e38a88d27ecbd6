"""A forked child is what a started one would be; see fork_server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

import fork_server

FACTS = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv, "path": sys.path[0], "cwd": os.getcwd(), "CANARY": os.environ.get("CANARY"),
    "parent": os.getppid(), "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0),
    "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "files": [n for n in os.listdir("/proc/self/fd") if int(n) < 600 and os.path.exists(f"/proc/self/fd/{n}")],
    "threads": len(os.listdir("/proc/self/task")), "input": sys.stdin.read(), "main": __name__,
}))
print("to the other", file=sys.stderr)
sys.exit(7)
"""


def facts(cls, folder, *, pass_fds=(), session=False):
    child = cls(
        [sys.executable, "-c", FACTS, "an argument", ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "CANARY": "sings"},
        pass_fds=pass_fds,
        start_new_session=session,
    )
    out, err = child.communicate("what is read")
    told = json.loads(out)
    if session:
        assert told["group"] == child.pid
        told["group"] = "its own"
    return told, err, child.returncode


def test_it_has_all_that_a_started_one_has(tmp_path):
    with (tmp_path / "file").open("w") as shared:
        given = {"pass_fds": (shared.fileno(),), "session": True}
        for options in ({}, given):
            forked = facts(fork_server.Popen, tmp_path, **options)
            assert forked == facts(fork_server.Started, tmp_path, **options)
            assert forked[0]["parent"] == os.getpid()
            assert forked[1:] == ("to the other\n", 7)


def child(code, *arguments, **options):
    before = fork_server.counts["served"]
    made = fork_server.Popen([sys.executable, "-c", code, *arguments], **options)
    assert fork_server.counts["served"] == before + 1
    return made


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit('no good')", 1, "no good\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("import atexit, os; atexit.register(os.write, 2, b'at its end')", 0, "at its end"),
    ],
)
def test_it_ends_as_it_would(code, ended, said):
    made = child(code, stderr=subprocess.PIPE, text=True)
    assert made.communicate()[1].endswith(said)
    assert made.returncode == ended


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number):
    made = child("import time; print(flush=True); time.sleep(60)", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    made.stdout.readline()
    assert psutil.Process(made.pid).cmdline()[:2] == [sys.executable, "-c"]
    made.send_signal(number)
    assert made.wait(10) == -number
    assert not psutil.pid_exists(made.pid)
    made.stdout.close()


NESTED = """
import subprocess, sys, time
import fork_server
from tuneforge.children import end_with_parent
command = [sys.executable, "-c", "import os, time; print(os.getppid(), os.getpid(), flush=True); time.sleep(60)"]
fork_server.Popen(command, preexec_fn=end_with_parent)
time.sleep(60)
"""


def test_a_child_of_a_child_dies_with_its_parent():
    parent = child(NESTED, stdout=subprocess.PIPE, text=True)
    above, inner = map(int, parent.stdout.readline().split())
    assert above == parent.pid
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 20
    while psutil.pid_exists(inner) and psutil.Process(inner).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_what_cannot_be_the_same_is_started(monkeypatch, tmp_path):
    code = "import sys; print('torch' in sys.modules)"

    def answer(cls, *command, **options):
        done = cls([*command], stdout=subprocess.PIPE, text=True, **options)
        return done.communicate()[0].strip()

    assert answer(fork_server.Popen, sys.executable, "-c", code) == "True"
    assert answer(fork_server.Commands, sys.executable, "-c", code) == "False"
    other = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert answer(fork_server.Popen, sys.executable, "-c", code, env=other) == "False"
    assert answer(fork_server.Popen, "echo", "-c", "x") == "-c x"
    with pytest.raises(FileNotFoundError):
        child("pass", cwd=tmp_path / "nowhere")


def test_the_command_line_is_forked():
    before = fork_server.counts["served"]
    done = subprocess.run(
        [sys.executable, "-m", "tuneforge", "optim.lrr=1"], capture_output=True, text=True, check=False
    )
    assert fork_server.counts["served"] == before + 1
    assert done.returncode == 2
    assert "did you mean 'lr'" in done.stderr


def test_a_helper_ends_with_the_one_that_asks_it_even_in_the_middle_of_a_request():
    ours, theirs = socket.socketpair()
    helper = os.fork()
    if helper == 0:
        ours.close()
        fork_server._serve(theirs)
        os._exit(1)
    theirs.close()
    ours.sendall((1000).to_bytes(8) + b"half of it")
    ours.close()
    assert os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1]) == 0
