"""The canary notices what it is there for: a check that cannot fail would prove nothing."""

import importlib
import os
import shutil

import pytest


def overwrite(canary):
    canary.file.write_text("changed")


def delete(canary):
    shutil.rmtree(canary.folder / "inner")


def create(canary):
    canary.mark.touch()


def set_variable(canary):
    os.environ[canary.variable] = "x"


def add_variable(canary):
    os.environ["CANARY_TOO"] = "x"


def import_module(canary):
    importlib.import_module(canary.module)


def end_process(canary):
    canary.process.kill()
    canary.process.wait()


@pytest.mark.parametrize(
    "attack",
    [overwrite, delete, create, set_variable, add_variable, import_module, end_process],
    ids=lambda a: a.__name__,
)
def test_the_canary_notices(attack, canary):
    canary.check()
    attack(canary)
    with pytest.raises(AssertionError):
        canary.check()
    # What was changed is made good again, so that the check at the end of the test passes.
    canary.file.write_text("whole")
    canary.mark.unlink(missing_ok=True)
    (canary.folder / "inner").mkdir(exist_ok=True)
    (canary.folder / "inner" / "run.json").write_text('{"status": "done"}')
    os.environ.pop("CANARY_TOO", None)
    canary.before = canary.state()
