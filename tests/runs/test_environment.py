import os
import subprocess

from latentloom.runs import environment


def test_the_commit_is_that_of_the_code_and_tells_local_changes(tmp_path):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.check_output(["git", *identity, *arguments], cwd=tmp_path, env=plain, text=True).strip()

    git("init", "-q", "-b", "trunk")
    assert environment.git_state(tmp_path) == (environment.NO_GIT, environment.NO_GIT)
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-q", "-m", "m")
    commit = git("rev-parse", "HEAD")
    assert environment.git_state(tmp_path) == ("trunk", commit)
    (tmp_path / "code.py").write_text("2")
    assert environment.git_state(tmp_path) == ("trunk", f"{commit} with local changes")
    (tmp_path / "installed").mkdir()
    assert environment.git_state(tmp_path / "installed") == (environment.NO_GIT, environment.NO_GIT)


def test_the_machine_is_described():
    assert environment.package_versions()["latentloom"]
    assert environment.device_description()
    assert environment.peak_memory_mb() > 50
