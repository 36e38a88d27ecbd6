"""Child processes without their imports: each is forked from a process that has imported the libraries once.

A child of the command line spends about 12 seconds before its first step: 8 on imports, 4 on reading the standard
library for `data=pydoc`. Here one helper process does both, once, and every child is a fork of it.

`Popen` is `subprocess.Popen` with another way to make the process; all the rest (wait, poll, pipes, signals) is the
standard library's own code. It serves the command line and the processes that it starts (`MODULES`), and where it
cannot be exact (another environment for the libraries, another interpreter) it starts a real process.

How it works. The helper forks twice and the process in the middle ends, so that the system gives the child a new
parent: the nearest ancestor that asked for orphans (`PR_SET_CHILD_SUBREAPER`). That is the process which called
`Popen`. So `waitpid`, exit codes, deaths by signal and `PR_SET_PDEATHSIG` are those of an ordinary child. Each child
gets a helper of its own, forked before anything ran, and serves the processes that it starts from there.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

MODULES = (
    *("tuneforge", "tuneforge.worker", "tuneforge.study.worker", "torch.distributed.run"),
    *("several", "doubles"),  # of tests/distributed
)
"""What `python -m` is served for."""
LOADED = (
    *("torch", "torch.distributed.run", "torch.utils.tensorboard", "tensorboard.plugins.hparams"),
    *("transformers", "transformers.models.llama.modeling_llama", "transformers.generation"),
    *("peft", "peft.tuners.lora.bnb", "peft.utils.transformers_weight_conversion", "lightning.pytorch"),
    *("optuna", "sqlalchemy", "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper"),
    *("tuneforge.worker", "tuneforge.study.worker", "tuneforge.cli", "tuneforge.train", "tuneforge.build"),
    *("tuneforge.commands.train", "tuneforge.artifacts.record", "tuneforge.finish", "tuneforge.objectives.causal_lm"),
)
READ_AT_IMPORT = (
    *(
        "ATEN_",
        "COLUMNS",
        "DNNL_",
        "GLIBC_",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HOME",
        "KMP_",
        "LANG",
        "LC_",
    ),
    *("LD_", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON", "TORCH_LOGS", "TRANSFORMERS_OFFLINE", "TZ"),
    *("XDG_",),
)
"""Beginnings of names of variables that take effect in an import: a child with other values is a real process."""
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
HIGH = 700
"""File descriptors of ours are above this: a child's own have the numbers they would have without us."""
PADDING = "x" * 8192
"""An argument whose place in memory a child's own command line takes, for `ps` and psutil."""

_helper: tuple[socket.socket, dict[str, str]] | None = None
"""The helper that this process asks, and the variables it has imported the libraries with."""
_lock = threading.Lock()
counts = {"served": 0, "started": 0}
"""Python processes that were forked, and those that were started."""
Started = subprocess.Popen
"""The standard class: a process that is started."""
PATIENCE = 600.0
"""Seconds until a helper that does not answer is an error; under load it may take long to import."""


class Popen(Started):  # type: ignore[type-arg]
    """`subprocess.Popen` whose Python children are forked from the helper; also those of `python -c`."""

    serves_code = True

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, *more: Any) -> None:
        pass_fds, cwd, env, _startup, _flags, shell, *ends = more
        *pipes, _restore, gid, gids, uid, umask, new_session, group = ends
        plain = (gid, gids, uid, umask, group) == (None, None, None, -1, -1)
        asked = None if executable or shell or not close_fds or not plain else self._asked(args, preexec_fn, env)
        if asked is None:
            counts["started"] += _is_python(args)
            super()._execute_child(args, executable, preexec_fn, close_fds, *more)
            return
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        standard = [own if end == -1 else end for own, end in enumerate((p2cread, c2pwrite, errwrite))]
        asked |= {
            "cwd": os.fspath(cwd) if cwd else os.getcwd(),
            "new_session": bool(new_session),
            "parent": os.getpid(),
            "fds": [0, 1, 2, *pass_fds],
        }
        try:
            self.pid = _ask(asked, [*standard, *pass_fds])
        finally:
            self._close_pipe_fds(*pipes)
        self._child_created = True
        counts["served"] += 1

    def _asked(self, args: Any, preexec: Any, env: Any) -> dict[str, Any] | None:
        """What to run; None: it takes a process of its own."""
        if not _is_python(args) or (preexec is not None and "." in preexec.__qualname__):
            return None
        unbuffered, rest = args[1] == "-u", [os.fspath(a) for a in args[1:]]
        how, what, *arguments = rest[1:] if unbuffered else rest
        if not (how == "-m" and what in MODULES) and not (how == "-c" and self.serves_code):
            return None
        environment = dict(os.environ if env is None else env)
        if _read_at_import(environment) != _read_at_import(start()[1]):
            return None
        called = [preexec.__module__, preexec.__qualname__] if preexec else None
        return {
            "how": how,
            "what": what,
            "arguments": arguments,
            "command": [os.fspath(a) for a in args],
            "unbuffered": unbuffered,
            "preexec": called,
            "env": environment,
        }


class Commands(Popen):
    """For all of a test session: commands alone. Code that a test writes looks at imports more often than not."""

    serves_code = False


def start() -> tuple[socket.socket, dict[str, str]]:
    """The helper of this process; the first call starts one, which loads while the caller goes on."""
    global _helper  # noqa: PLW0603
    with _lock:
        if _helper is None:
            ours, theirs = socket.socketpair()
            command = [sys.executable, __file__, str(theirs.fileno()), PADDING]
            helper = Started(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            atexit.register(_end, ours, helper)
            theirs.close()
            ours.settimeout(PATIENCE)
            _helper = ours, dict(os.environ)
        return _helper


def _end(asking: socket.socket, helper: Any) -> None:
    asking.close()
    helper.kill()  # it may still be importing
    helper.wait()


def _is_python(args: Any) -> bool:
    return isinstance(args, list | tuple) and len(args) > 2 and args[0] == sys.executable


def _read_at_import(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT)}


def _prctl(option: int, value: Any) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _ask(request: dict[str, Any], fds: list[int]) -> int:
    """Have a child made; returns its process id."""
    asking, _ = start()
    body = json.dumps(request).encode()
    with _lock:
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(asking, [len(body).to_bytes(8)], fds)
            asking.sendall(body)
            reply = json.loads(asking.recv(65536) or b'{"error": "the fork server has ended"}')
        finally:
            _prctl(PR_SET_CHILD_SUBREAPER, 0)
    if "errno" in reply:
        raise OSError(reply["errno"], os.strerror(reply["errno"]), reply["name"])
    assert "error" not in reply, reply["error"]
    pid: int = reply["pid"]
    return pid


# ---- in the helper


def _serve(asked: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork a child a request, until nobody is left to ask. Returns in the children alone."""
    while True:
        header, fds, *_ = socket.recv_fds(asked, 8, 64)
        if not header:
            os._exit(0)
        body = bytearray()
        while len(body) < int.from_bytes(header):
            part = asked.recv(1 << 20)
            if not part:  # whoever asked was killed in the middle of it
                os._exit(0)
            body += part
        middle = os.fork()
        if middle == 0:
            if os.fork():
                os._exit(0)
            return json.loads(body), fds
        for fd in fds:
            os.close(fd)
        os.waitpid(middle, 0)


def _become(request: dict[str, Any], fds: list[int], asked: socket.socket) -> None:
    """What a new process has from its parent: files, folder, environment, session; then tell who it is."""
    while os.getppid() != request["parent"]:
        if os.getppid() == 1:  # it is gone already
            os._exit(1)
        os.sched_yield()
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH) for fd in fds]
    for fd in fds:
        os.close(fd)
    for source, target in zip(moved, request["fds"], strict=True):
        os.dup2(source, target)
        os.close(source)
    os.environ.clear()
    os.environ.update(request["env"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.chdir(request["cwd"])
        if request["new_session"]:
            os.setsid()
        else:
            os.setpgid(0, os.getpgid(request["parent"]))
    except OSError as error:
        asked.sendall(json.dumps({"errno": error.errno, "name": error.filename}).encode())
        os._exit(1)
    if request["preexec"]:
        module, name = request["preexec"]
        getattr(importlib.import_module(module), name)()
    _show(request["command"])
    asked.sendall(json.dumps({"pid": os.getpid()}).encode())
    asked.close()


def _renew(request: dict[str, Any]) -> None:
    """What the interpreter and the libraries set up when they start."""
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=request["unbuffered"])  # type: ignore[union-attr]
    sys.argv[:] = ["-m" if request["how"] == "-m" else "-c", *request["arguments"]]
    sys.path[0] = os.getcwd() if request["how"] == "-m" else ""
    tempfile.tempdir = None
    sys.modules["numpy"].random.seed()


def _own_helper() -> None:
    """One for what this child starts: forked while nothing has run yet, and ended with the child."""
    global _helper  # noqa: PLW0603
    ours, theirs = map(_above, socket.socketpair())
    parent = os.getpid()
    if os.fork() == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        ours.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # a pipe must end when the child does
            os.dup2(null, number)
        os.close(null)
        _run(*_serve(theirs), theirs)
    theirs.close()
    _helper = ours, dict(os.environ)


def _above(low: socket.socket) -> socket.socket:
    """The same under a number that no child has for itself."""
    with low:
        return socket.socket(fileno=fcntl.fcntl(low.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH))


def _show(command: list[str]) -> None:
    """Have the system show this command for the process: the arguments it was started with are overwritten."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])
    text = " ".join(command).encode()[: end - begin - 2]
    # A last byte that is not zero says that the whole is one text, and no list.
    ctypes.memmove(begin, text + bytes(end - begin - len(text) - 1) + b"x", end - begin)


def _run(request: dict[str, Any], fds: list[int], asked: socket.socket) -> None:
    """The child itself. Whatever it raises ends it as it would end any interpreter."""
    _become(request, fds, asked)
    _renew(request)
    _own_helper()
    subprocess.Popen = Commands  # type: ignore[misc]
    if request["how"] == "-m":
        runpy.run_module(request["what"], run_name="__main__", alter_sys=True)
    else:
        exec(compile(request["what"], "<string>", "exec"), {"__name__": "__main__"})
    sys.exit(0)


def _load() -> None:
    """Import what children need, and read the standard library's documentation; no thread may have come of it."""
    from tuneforge.console import quiet_libraries

    quiet_libraries()
    for name in LOADED:
        importlib.import_module(name)
    from tuneforge.data.pydoc import questions

    questions()
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork has one of them"
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: it is for the tests
    of_tests = _above(socket.socket(fileno=int(sys.argv[1])))
    sys.modules["fork_server"] = sys.modules["__main__"]
    _load()
    _run(*_serve(of_tests), of_tests)
