"""The run folder: whole files, one writer, plain words for disk troubles."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from variegate.errors import RunFolderError
from variegate.files import write_atomic
from variegate.records import ClassInfo, RealImage
from variegate.store import RunFolder, class_slug


def test_dataset_and_decisions_come_back_as_written(tmp_path: Path) -> None:
    classes = [ClassInfo(0, "ant", "0000-ant"), ClassInfo(1, "🦋", "0001", "a butterfly")]
    images = [
        RealImage("b", "dataset/b.png", 1, "train", group="sand", caption="a, b", width=3, height=4, sha256="ff"),
        RealImage("a", "/somewhere/a.png", 0, "test"),
    ]
    with RunFolder.create(tmp_path / "out") as folder:
        folder.put_dataset(classes, images)
        assert folder.classes() == classes
        test, train = folder.real_images()
        assert (test.id, train.caption, train.group) == ("a", "a, b", "sand")
        assert train.path == str(tmp_path / "out" / "dataset" / "b.png") and test.path == "/somewhere/a.png"
        assert [image.id for image in folder.real_images("train")] == ["b"]


def test_a_persons_decision_outranks_curate(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "out") as folder:
        folder.put_dataset([ClassInfo(0, "ant", "0000-ant")], [])
        with folder.transaction() as db:
            db.execute("INSERT INTO prompts VALUES (0, 'an ant')")
            db.execute("INSERT INTO plan VALUES (0, 'abcd', 0, NULL, 0, 0, 0, 1.0, 4, 7, 0, 0, '', '')")
            db.execute("INSERT INTO chunks VALUES (0, 0, 1, 'done', 1.0, NULL)")
        folder.put_decisions("human", [("abcd", "keep", 1.0, "looks right")])
        folder.put_decisions("curate", [("abcd", "drop", 0.0, "off-class")])
        (image,) = folder.synthetic_images()
        assert (image.reason, image.path) == ("looks right", "synthetic/train/0000-ant/ab/abcd.jpg")


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "out") as folder:
        with pytest.raises(RuntimeError), folder.transaction() as db:
            db.execute("INSERT INTO meta VALUES ('x', '1')")
            raise RuntimeError
        assert folder.meta("x") is None


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.txt"
    write_atomic(target, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_leftovers_of_a_killed_writer_are_swept_and_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "out")
    (tmp_path / "out" / ".a.jpg.123.tmp").write_bytes(b"half")
    (tmp_path / "out" / "notes.tmp").write_bytes(b"mine")
    folder.db.close()
    os.close(folder._lock)  # what a SIGKILL does: no goodbye
    RunFolder.create(tmp_path / "out").close()
    assert not (tmp_path / "out" / ".a.jpg.123.tmp").exists()
    assert (tmp_path / "out" / "notes.tmp").exists()


def test_paths_cannot_leave_the_run_folder(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "out") as folder:
        for bad in ("../x", "/etc/passwd", "a/../../x"):
            with pytest.raises(RunFolderError):
                folder.write(bad, b"")


def test_reading_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder"):
        RunFolder.read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no database " * 200])
def test_a_damaged_run_folder_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.db").write_bytes(content)
    with pytest.raises(RunFolderError, match="run.db: cannot be read"):
        RunFolder.read(tmp_path)
    if content:
        with pytest.raises(RunFolderError, match="run.db: cannot be read"):
            RunFolder.create(tmp_path)
        assert (tmp_path / "run.db").read_bytes() == content


def test_a_run_folder_that_cannot_be_written_to_can_be_read() -> None:
    """A share of somebody else's: SQLite would make a file beside the database."""
    code = """
import os, sys
from pathlib import Path
from variegate.store import RunFolder
if os.geteuid() == 0:  # who may write anywhere
    os.setuid(65534)
print([info.name for info in RunFolder.read(Path(sys.argv[1])).classes()])
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as outer:  # pytest's own is closed to others
        root = Path(outer, "run")
        with RunFolder.create(root) as folder:
            folder.put_dataset([ClassInfo(0, "ant", "0000-ant")], [])
        for path, mode in ((Path(outer), 0o755), (root, 0o555)):
            path.chmod(mode)
        said = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True)
        root.chmod(0o755)
    assert said.stdout.strip() == "['ant']", said.stderr


def test_a_run_folder_with_odd_characters_can_be_read(tmp_path: Path) -> None:
    root = tmp_path / "what? #1 %20"
    RunFolder.create(root).close()
    RunFolder.read(root).close()


@pytest.mark.parametrize("name", ["..", "/", "a/b", "CON", "x" * 300, "", "."])
def test_a_slug_is_one_safe_path_part(name: str) -> None:
    slug = class_slug(7, name)
    assert "/" not in slug and slug not in {".", ".."} and len(slug) < 60 and slug.startswith("0007")
