"""A dropped plugin is code: who else could have written its files, or the folders above, is asked before it runs."""

import os
import stat
from pathlib import Path

import pytest

from tuneforge.plugins import discovery, files
from tuneforge.plugins.inspection import inspect


@pytest.fixture
def plugin(canary, tmp_path):
    """A healthy plugin whose code leaves the canary's mark when it is imported."""
    root = tmp_path / "drop" / "evil"
    conf = root / "evil" / "conf" / "callbacks"
    conf.mkdir(parents=True)
    (root / "evil" / "__init__.py").write_text(f"from pathlib import Path\nPath({str(canary.mark)!r}).touch()\n")
    (root / "helper.py").touch()
    (root / "evil" / "__pycache__").mkdir()
    (root / "evil" / "__pycache__" / "x.cpython-311.pyc").touch()
    (conf / "evil.yaml").write_text("# python -m tuneforge callbacks=evil\nevil:\n  _target_: evil.Evil\n")
    (root / "pyproject.toml").write_text(
        '[project]\nname = "evil"\n[project.entry-points."tuneforge.plugins"]\nevil = "evil"\n'
    )
    assert troubles(root) == []
    return root


def troubles(root):
    return [t.cause for t in inspect(discovery.read_folder(root)).troubles]


PLACES = ["", "..", "evil", "evil/conf", "evil/conf/callbacks", "evil/__init__.py", "evil/conf/callbacks/evil.yaml",
          "pyproject.toml", "helper.py", "evil/__pycache__", "evil/__pycache__/x.cpython-311.pyc"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_what_everyone_may_write_is_refused(plugin, place):
    path = (plugin / place).resolve()
    path.chmod(path.stat().st_mode | stat.S_IWOTH)
    (cause,) = troubles(plugin)
    assert cause == f"everyone on this machine may write into {path}"
    path.chmod(path.stat().st_mode & ~stat.S_IWOTH)
    assert troubles(plugin) == []


def test_a_sticky_folder_above_is_as_safe_as_the_systems_own(plugin):
    plugin.parent.chmod(0o1777)
    assert troubles(plugin) == []


@pytest.mark.parametrize("place", PLACES)
def test_what_belongs_to_another_user_is_refused(plugin, monkeypatch, place):
    path = (plugin / place).resolve()
    real = os.lstat

    def lstat(of, *args, **kwargs):
        found = real(of, *args, **kwargs)
        if Path(of) != path:
            return found
        return os.stat_result([*found[:4], 4242, *found[5:]])

    monkeypatch.setattr(Path, "lstat", lstat)
    (cause,) = troubles(plugin)
    assert cause.startswith(f"{path} belongs to the user with the number 4242")


def test_trusted_are_this_user_root_and_who_owns_tuneforge():
    assert files.trusted_owners() == {0, os.getuid(), Path(files.__file__).stat().st_uid}


@pytest.mark.parametrize("place", ["evil/x.py", "evil/conf/callbacks/x.yaml", "pyproject.toml", "evil/inner"])
def test_links_out_of_the_folder_are_refused(plugin, canary, place):
    (plugin / place).unlink(missing_ok=True)
    source = canary.folder if place == "evil/inner" else canary.folder / "plugin.toml"
    if source != canary.folder:
        source = plugin.parent / "outside"
        source.write_text('[project]\nname = "evil"\n[project.entry-points."tuneforge.plugins"]\nevil = "evil"\n')
    os.symlink(source, plugin / place)
    assert any("is a link out of the plugin's folder" in cause for cause in troubles(plugin))


def test_an_environment_beside_the_package_is_left_alone(plugin):
    """Its python is a link out of the folder, and nothing in it is imported."""
    for name in (".venv", "venv"):
        (plugin / name / "bin").mkdir(parents=True)
        (plugin / name / "pyvenv.cfg").touch()
        os.symlink("/usr/bin/python3", plugin / name / "bin" / "python")
    assert troubles(plugin) == []


def test_a_link_to_the_folder_of_plugins_is_looked_at(plugin, monkeypatch, tmp_path):
    """Who made the link chose what runs."""
    os.symlink(plugin.parent, tmp_path / "link")
    monkeypatch.setenv("TUNEFORGE_PLUGIN_PATH", str(tmp_path / "link"))
    real = os.lstat
    owned = {tmp_path / "link": 4242}

    def lstat(of, *args, **kwargs):
        found = real(of, *args, **kwargs)
        return os.stat_result([*found[:4], owned.get(Path(of), found[4]), *found[5:]])

    monkeypatch.setattr(Path, "lstat", lstat)
    (found,) = [inspect(p) for p in discovery._dropped()]
    assert [t.cause.partition(" belongs")[0] for t in found.troubles] == [str(tmp_path / "link")]


def test_a_link_within_the_folder_is_fine(plugin):
    os.symlink("__init__.py", plugin / "evil" / "again.py")
    assert troubles(plugin) == []


def test_a_pipe_is_refused_and_not_read(plugin):
    os.mkfifo(plugin / "evil" / "conf" / "callbacks" / "pipe.yaml")
    assert any("neither a file nor a folder" in cause for cause in troubles(plugin))


BOMBS = {
    "nesting": "a = " + "[" * 100_000,
    "tables": "".join(f"[{'a.' * 200}b{i}]\n" for i in range(20)) + "[project",
    "size": "# " + "x" * (discovery.MAX_PYPROJECT + 1),
    "text for a table": "project = 'x'",
    "number for the points": "[project]\nentry-points = 3",
    "list for the group": "[project.entry-points]\n'tuneforge.plugins' = [1]",
    "text for the dependencies": "[project]\ndependencies = 'a'",
    "path for the package": '[project]\nname = "x"\n[project.entry-points."tuneforge.plugins"]\nevil = "../../evil"',
    "no text": "\0\1\2",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_no_pyproject_hangs_or_fails(plugin, processor_seconds, kind):
    (plugin / "pyproject.toml").write_text(BOMBS[kind])
    with processor_seconds(3):
        assert any("pyproject.toml" in cause for cause in troubles(plugin))


def test_a_bad_plugin_breaks_only_what_names_it(plugin, refused, monkeypatch, canary, tmp_path):
    """And it is never imported: the canary's mark is not made."""
    (plugin / "evil" / "__init__.py").chmod(0o666)
    monkeypatch.delenv("TUNEFORGE_PLUGINS", raising=False)
    monkeypatch.setenv("TUNEFORGE_PLUGIN_PATH", str(plugin.parent))
    canary.before = canary.state()
    said = refused("callbacks=evil", f"output_root={tmp_path}/outputs")
    assert "everyone on this machine may write into" in said
    assert "chmod o-w" in said
