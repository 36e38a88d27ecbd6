"""A process's place among others, read from what torchrun and srun put into the environment."""

import os

import pytest

from tuneforge.cli import run
from tuneforge.errors import TuneforgeError
from tuneforge.world import AGENT_STORE, World, find_world, first_node, tasks_per_node

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "99",
}


@pytest.fixture
def environment(monkeypatch):
    for name in (*TORCHRUN, *SLURM, "GROUP_RANK", AGENT_STORE):
        monkeypatch.delenv(name, raising=False)

    def put(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def test_alone_where_nothing_is_said(environment):
    assert find_world() == World()
    # A batch script has the job's number of tasks, and is one process all the same.
    environment({"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"})
    assert find_world() == World()
    environment({"RANK": "0", "WORLD_SIZE": "1"})
    assert find_world() == World()


def test_torchrun_wins_over_the_srun_that_started_it(environment):
    environment({**SLURM, **TORCHRUN})
    world = find_world()
    assert world == World(3, 4, 1, 2, "host", 29500)
    assert world.num_nodes == 2
    assert world.variables() == {**TORCHRUN, "GROUP_RANK": "1"}


def test_srun(environment, monkeypatch):
    environment(SLURM)
    world = find_world()
    assert world == World(5, 8, 1, 4, "gpu07", 15000 + 4713)
    environment(world.variables())
    assert find_world() == world
    monkeypatch.delenv("RANK")
    environment({"MASTER_ADDR": "other", "MASTER_PORT": "5"})
    assert (find_world().address, find_world().port) == ("other", 5)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[001-004]", "gpu001"),
        ("gpu[3,7-9],cpu1", "gpu3"),
        ("rack-2-gpu[1-2]-ib,x", "rack-2-gpu1-ib"),
    ],
)
def test_the_first_machine_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_counts_of_tasks():
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("16") == [16]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "incomplete-launcher"),
        ({"RANK": "0"}, "incomplete-launcher"),
        ({**TORCHRUN, "WORLD_SIZE": "5"}, "uneven-machines"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "5,3"}, "uneven-machines"),
        ({**TORCHRUN, "RANK": "first"}, "bad-launcher"),
        ({**TORCHRUN, "RANK": "-1"}, "bad-launcher"),
        ({**TORCHRUN, "RANK": TORCHRUN["WORLD_SIZE"]}, "bad-launcher"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "0"}, "bad-launcher"),
        *(({**TORCHRUN, "MASTER_PORT": port}, "bad-launcher") for port in ("", "abc", "0", "99999999")),
        ({**TORCHRUN, "MASTER_ADDR": ""}, "bad-launcher"),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "0", "LOCAL_WORLD_SIZE": "0"}, "bad-launcher"),
        *(({"LOCAL_RANK": rank}, "incomplete-launcher") for rank in ("1", "x")),
        *(({"WORLD_SIZE": size}, "incomplete-launcher") for size in ("0", "2", "two")),
        ({"RANK": ""}, "incomplete-launcher"),
        ({**SLURM, "SLURM_PROCID": "8"}, "bad-launcher"),
        ({**SLURM, "SLURM_LOCALID": "4"}, "bad-launcher"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "bad-launcher"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4(x999999999)"}, "bad-launcher"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "bad-launcher"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "bad-launcher"),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(y3)"}, "bad-launcher"),
    ],
)
def test_what_is_half_said_or_uneven_is_refused(environment, given, code):
    environment(given)
    with pytest.raises(TuneforgeError) as caught:
        find_world()
    assert caught.value.problems[0].code == code


@pytest.mark.parametrize(
    "given",
    [
        {"RANK": "0"},
        {"RANK": "1"},
        {"RANK": "x", "WORLD_SIZE": "2"},
        {**TORCHRUN, "MASTER_PORT": "abc"},
        {**SLURM, "SLURM_LOCALID": "x"},
        {"LOCAL_RANK": "1"},
    ],
)
def test_half_a_launcher_stops_no_answer_that_needs_none_and_its_error_is_printed(environment, capsys, given):
    environment(given)
    assert run(["--version"]) == 0
    assert run(["plan", "--help"]) == 0
    capsys.readouterr()
    assert run(["plan"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_an_error_before_the_world_is_entered_is_printed_by_the_first_process_alone(environment, capsys):
    for rank, said in (("5", 0), ("0", 1)):
        environment({**SLURM, "SLURM_PROCID": rank, "SLURM_LOCALID": "0"})
        assert run(["--colour"]) == 2
        assert capsys.readouterr().err.count("error: ") == said


def test_the_only_process_prints_whatever_its_rank_and_libraries_see_no_other(environment, capsys):
    environment({"RANK": "1", "WORLD_SIZE": "1", "LOCAL_RANK": "x", "MASTER_PORT": "abc", AGENT_STORE: "True"})
    assert run(["method=lroa"]) == 2
    assert "lora" in capsys.readouterr().err
    # Lightning keeps its loggers quiet in a process of RANK=1.
    assert not [name for name in (*TORCHRUN, AGENT_STORE) if name in os.environ]
