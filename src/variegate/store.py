"""The run folder: the public interface between stages, report and user (design: recipe.yaml, run.db, synthetic/, ...).

`run.db` (SQLite, WAL) is the one source of truth and has one writer, the process that holds the folder's lock.
Files appear under a temporary name, are synced and renamed; their row is committed after that, never before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from variegate.errors import Problem, RunFolderError
from variegate.files import file_sha256, write_atomic
from variegate.records import ClassInfo, PlanRow, RealImage, SyntheticImage

ImagePath = Callable[[ClassInfo, str, str], str]  # (class, image id, extension) -> relative path

SCHEMA_VERSION = 3
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE stages (stage TEXT PRIMARY KEY, key TEXT NOT NULL, state TEXT NOT NULL, seconds REAL, summary TEXT) WITHOUT ROWID;
CREATE TABLE classes (label INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, slug TEXT UNIQUE NOT NULL,
                      description TEXT NOT NULL);
CREATE TABLE real (id TEXT PRIMARY KEY, path TEXT NOT NULL, label INTEGER NOT NULL, split TEXT NOT NULL, grp TEXT, caption TEXT,
                   mask TEXT, width INTEGER, height INTEGER, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE prompts (id INTEGER PRIMARY KEY, text TEXT UNIQUE NOT NULL);
CREATE TABLE plan (row INTEGER PRIMARY KEY, id TEXT NOT NULL, chunk INTEGER NOT NULL, source TEXT, target INTEGER NOT NULL,
                   prompt INTEGER NOT NULL, negative INTEGER NOT NULL, strength REAL NOT NULL, steps INTEGER NOT NULL,
                   seed INTEGER NOT NULL, token_std REAL NOT NULL, token_seed INTEGER NOT NULL,
                   mask TEXT NOT NULL, passes TEXT NOT NULL);
CREATE TABLE chunks (chunk INTEGER PRIMARY KEY, first_row INTEGER NOT NULL, num_rows INTEGER NOT NULL, state TEXT NOT NULL,
                     seconds REAL, note TEXT);
CREATE TABLE refined (id TEXT PRIMARY KEY, original_share REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE scores (id TEXT, score TEXT, value REAL, PRIMARY KEY (id, score)) WITHOUT ROWID;
CREATE TABLE decisions (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, action TEXT NOT NULL, weight REAL NOT NULL,
                        reason TEXT NOT NULL, made_by TEXT NOT NULL);
CREATE TABLE artefacts (stage TEXT, name TEXT, path TEXT NOT NULL, sha256 TEXT NOT NULL, PRIMARY KEY (stage, name)) WITHOUT ROWID;
"""


def _unreadable(root: Path, exc: Exception) -> Problem:
    is_damaged = not isinstance(exc, sqlite3.OperationalError) or "no such table" in str(exc)
    remedy = (
        "move the folder away and run again, or restore it" if is_damaged else "check permissions and other programs"
    )
    return Problem(str(root / "run.db"), f"cannot be read ({exc})", remedy)


def class_slug(label: int, name: str) -> str:
    """A path part for a class: the index keeps it unique, the readable part is only a help.

    >>> class_slug(3, "Crème brûlée / 🦋"), class_slug(0, "..")
    ('0003-creme-brulee', '0000')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].strip("-")
    return f"{label:04d}-{words}" if words else f"{label:04d}"


def synthetic_path(target: ClassInfo, image_id: str, extension: str = "jpg") -> str:
    """Where a synthetic image lives, relative to the run folder."""
    return _image_path("synthetic/train", target.slug, image_id, extension)


def drawn_path(target: ClassInfo, image_id: str, extension: str = "png") -> str:
    """Where a drawn image lives that refine makes a synthetic one of, relative to the run folder."""
    return _image_path("drawn", target.slug, image_id, extension)


def _image_path(part: str, slug: str, image_id: str, extension: str) -> str:
    return f"{part}/{slug}/{image_id[:2]}/{image_id}.{extension}"


class RunFolder:
    """A run folder opened for writing (`create`) or reading (`read`); use it in a `with` block."""

    def __init__(self, root: Path, db: sqlite3.Connection, lock: int | None) -> None:
        self.root, self.db, self._lock = root, db, lock

    # ---------------------------------------------------------------- opening

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """Open for writing, making it if needed; raises RunFolderError when busy, foreign, read-only or full."""
        with explained(root):
            _refuse_foreign(root)
            root.mkdir(parents=True, exist_ok=True)
            lock = _lock(root)
            try:
                db = sqlite3.connect(root / "run.db", isolation_level=None)
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                if not db.execute("SELECT 1 FROM sqlite_master WHERE name='meta'").fetchone():
                    db.executescript(f"BEGIN; {SCHEMA} INSERT INTO meta VALUES ('schema', '{SCHEMA_VERSION}'); COMMIT;")
            except sqlite3.DatabaseError as exc:
                os.close(lock)
                if isinstance(exc, sqlite3.OperationalError):
                    raise  # the disk's doing
                raise RunFolderError(_unreadable(root, exc)) from exc
            except BaseException:
                os.close(lock)
                raise
        folder = cls(root, db, lock)
        folder._check_schema()
        if folder.meta("open"):
            sweep_temporary(root)
        folder.set_meta("open", "1")
        (root / "logs").mkdir(exist_ok=True)
        return folder

    @classmethod
    def read(cls, root: Path) -> RunFolder:
        """Open a finished or running run for reading; raises RunFolderError where there is none."""
        if not (root / "run.db").is_file():
            raise RunFolderError(
                Problem(str(root), "is no run folder (it has no run.db)", "name a folder made by variegate run")
            )
        where = f"file:{quote((root / 'run.db').resolve().as_posix())}?mode=ro"
        is_whole = not (root / "run.db-wal").is_file()  # a folder that cannot be written to holds all in the file then
        for address in (where, *([f"{where}&immutable=1"] if is_whole else [])):
            db = sqlite3.connect(address, uri=True)
            folder = cls(root, db, None)
            try:
                folder._check_schema()
                return folder
            except sqlite3.DatabaseError as exc:
                db.close()
                cause = exc
        raise RunFolderError(_unreadable(root, cause)) from cause

    def _check_schema(self) -> None:
        found = self.meta("schema")
        if found != str(SCHEMA_VERSION):
            self.db.close()
            if self._lock is not None:
                os.close(self._lock)
            text = f"written with schema {found}, this version reads {SCHEMA_VERSION}"
            raise RunFolderError(Problem(str(self.root), text, "use a new --out folder"))

    def close(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(sqlite3.Error):  # a full disk: the mark stays, the next opening sweeps
                self.db.execute("DELETE FROM meta WHERE key = 'open'")
        self.db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block's statements or none."""
        with explained(self.root):
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException:
                if self.db.in_transaction:  # SQLite itself rolls back when the disk is full
                    self.db.execute("ROLLBACK")
                raise

    def path(self, relative: str) -> Path:
        """An absolute path inside the run folder; refuses to leave it."""
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise RunFolderError(Problem(relative, "leads out of the run folder"))
        return path

    def write(self, relative: str, data: bytes | str) -> Path:
        """Write one file of the run atomically."""
        path = self.path(relative)
        with explained(self.root):
            write_atomic(path, data.encode() if isinstance(data, str) else data)
        return path

    def set_meta(self, key: str, value: str) -> None:
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def finish_stage(self, stage: str, key: str, seconds: float, summary: dict[str, Any]) -> None:
        with self.transaction() as db:
            row = (stage, key, "done", seconds, json.dumps(summary, ensure_ascii=False))
            db.execute("INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?)", row)

    def put_dataset(self, classes: Sequence[ClassInfo], images: Sequence[RealImage]) -> None:
        """Freeze classes and splits."""
        with self.transaction() as db:
            db.execute("DELETE FROM classes")
            db.execute("DELETE FROM real")
            db.executemany(
                "INSERT INTO classes VALUES (?, ?, ?, ?)", ((c.label, c.name, c.slug, c.description) for c in classes)
            )
            db.executemany(
                "INSERT INTO real VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (i.id, i.path, i.label, i.split, i.group, i.caption, i.mask, i.width, i.height, i.sha256)
                    for i in images
                ),
            )

    def put_scores(self, score: str, values: Iterable[tuple[str, float]]) -> None:
        with self.transaction() as db:
            rows = ((image_id, score, float(value)) for image_id, value in values)
            db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    def put_decisions(self, made_by: str, decisions: Iterable[tuple[str, str, float, str]]) -> None:
        """Replace this maker's decisions by (id, action, weight, reason) rows; others' stay."""
        with self.transaction() as db:
            db.execute("DELETE FROM decisions WHERE made_by = ?", (made_by,))
            rows = ((*decision, made_by) for decision in decisions)
            db.executemany("INSERT INTO decisions (id, action, weight, reason, made_by) VALUES (?, ?, ?, ?, ?)", rows)

    def put_artefact(self, stage: str, name: str, relative: str) -> None:
        digest = file_sha256(self.path(relative))
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO artefacts VALUES (?, ?, ?, ?)", (stage, name, relative, digest))

    # ---------------------------------------------------------------- reading

    def meta(self, key: str) -> str | None:
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def stage(self, stage: str) -> tuple[str, dict[str, Any], float] | None:
        """(key, summary, seconds) of a finished stage, or None."""
        row = self.db.execute(
            "SELECT key, summary, seconds FROM stages WHERE stage = ? AND state = 'done'", (stage,)
        ).fetchone()
        return (row[0], json.loads(row[1]), row[2]) if row else None

    def classes(self) -> list[ClassInfo]:
        """In label order."""
        return [
            ClassInfo(*row)
            for row in self.db.execute("SELECT label, name, slug, description FROM classes ORDER BY label")
        ]

    def real_images(self, split: str | None = None) -> list[RealImage]:
        """Sorted by split, label, id; `path` and `mask` made absolute."""
        where, values = ("WHERE split = ?", (split,)) if split else ("", ())
        query = f"SELECT id, path, label, split, grp, caption, mask, width, height, sha256 FROM real {where} ORDER BY split, label, id"
        return [
            RealImage(*(row[0], str(self.root / row[1]), *row[2:6], row[6] and str(self.root / row[6]), *row[7:]))
            for row in self.db.execute(query, values)
        ]

    def plan_rows(self, chunk: int) -> list[PlanRow]:
        """The rows of one chunk, in order."""
        query = """SELECT row, plan.id, chunk, source, target, p.text, n.text, strength, steps, seed,
                   token_std, token_seed, mask, passes
                   FROM plan JOIN prompts p ON p.id = plan.prompt JOIN prompts n ON n.id = plan.negative
                   WHERE row >= ? AND row < ? ORDER BY row"""
        first, count = self.db.execute("SELECT first_row, num_rows FROM chunks WHERE chunk = ?", (chunk,)).fetchone()
        found = self.db.execute(query, (first, first + count))
        return [PlanRow(*(*row[:-1], tuple(float(one) for one in row[-1].split()))) for row in found]

    def pending_chunks(self) -> list[int]:
        return [row[0] for row in self.db.execute("SELECT chunk FROM chunks WHERE state != 'done' ORDER BY chunk")]

    def chunk_states(self) -> set[str]:
        return {row[0] for row in self.db.execute("SELECT DISTINCT state FROM chunks")}

    @property
    def drawn_format(self) -> str | None:
        """File format of drawn images that refine goes on with; None where drawn images are the synthetic ones."""
        return self.meta("drawn_format") or None

    def unrefined_chunks(self) -> list[int]:
        """Chunks that are drawn and not refined, in order."""
        query = """SELECT k.chunk FROM chunks k JOIN plan ON plan.row = k.first_row WHERE k.state = 'done'
                   AND plan.id NOT IN (SELECT id FROM refined) ORDER BY k.chunk"""
        return [row[0] for row in self.db.execute(query)]

    def lost_chunks(self, path_of: ImagePath, extension: str, *, refined: bool = False) -> list[int]:
        """Chunks recorded as drawn, or refined, of which a file is missing."""
        classes = self.classes()
        join = "JOIN refined ON refined.id = plan.id" if refined else ""
        query = f"SELECT chunk, plan.id, target FROM plan JOIN chunks USING (chunk) {join} WHERE state = 'done' ORDER BY row"
        lost: dict[int, None] = {}
        for chunk, image_id, target in self.db.execute(query):
            if chunk not in lost and not (self.root / path_of(classes[target], image_id, extension)).exists():
                lost[chunk] = None
        return list(lost)

    def synthetic_images(self, *, kept_only: bool = True) -> list[SyntheticImage]:
        """Synthetic images in plan order with their decision: a human's if there is one, else curate's last."""
        query = f"""
            SELECT plan.id, c.slug, plan.source, r.label, plan.target, p.text, plan.strength,
                   COALESCE(d.action, 'keep'), COALESCE(d.weight, 1.0), COALESCE(d.reason, ''),
                   COALESCE(f.original_share, 0.0)
            FROM plan JOIN chunks k ON k.chunk = plan.chunk AND k.state = 'done'
            {"JOIN" if self.drawn_format else "LEFT JOIN"} refined f ON f.id = plan.id
            JOIN classes c ON c.label = plan.target JOIN prompts p ON p.id = plan.prompt
            LEFT JOIN real r ON r.id = plan.source
            LEFT JOIN (SELECT id, action, weight, reason,
                       ROW_NUMBER() OVER (PARTITION BY id ORDER BY made_by = 'human' DESC, seq DESC) AS rank FROM decisions) d
            ON d.id = plan.id AND d.rank = 1 ORDER BY plan.row"""
        extension = self.meta("image_format") or "jpg"
        refined = (self.meta("refined_by") or self.meta("refine_key") or "") if self.drawn_format else ""
        images = [
            SyntheticImage(row[0], _image_path("synthetic/train", row[1], row[0], extension), *(*row[2:], refined))
            for row in self.db.execute(query)
        ]
        return [image for image in images if image.action == "keep"] if kept_only else images

    def scores(self, score: str) -> dict[str, float]:
        return dict(self.db.execute("SELECT id, value FROM scores WHERE score = ?", (score,)))

    def artefacts(self, stage: str) -> dict[str, str]:
        """name -> relative path."""
        return dict(self.db.execute("SELECT name, path FROM artefacts WHERE stage = ? ORDER BY name", (stage,)))


# -------------------------------------------------------------------------------------------- disk troubles


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn disk errors into RunFolderError with the remedy."""
    remedies = {
        errno.ENOSPC: (
            "the disk is full",
            "free some space, then run the same command again: it goes on where it stopped",
        ),
        errno.EDQUOT: ("the disk quota is used up", "free some space, then run the same command again"),
        errno.EACCES: ("not allowed to write here", "choose another --out folder or change its permissions"),
        errno.EPERM: ("not allowed to write here", "choose another --out folder or change its permissions"),
        errno.EROFS: ("the file system is read-only", "choose another --out folder"),
        errno.ENOTDIR: ("is not a folder", "choose another --out folder"),
        errno.EEXIST: ("is a file, not a folder", "choose another --out folder"),
        errno.ENAMETOOLONG: ("the path is too long", "choose a shorter --out folder"),
    }
    try:
        yield
    except OSError as exc:
        if exc.errno not in remedies:
            raise
        what, remedy = remedies[exc.errno]
        raise RunFolderError(Problem(str(exc.filename or root), what, remedy)) from exc
    except sqlite3.OperationalError as exc:
        text = str(exc)
        if "full" in text:
            raise RunFolderError(Problem(str(root), *remedies[errno.ENOSPC])) from exc
        if "readonly" in text or "unable to open" in text:
            raise RunFolderError(Problem(str(root), *remedies[errno.EACCES])) from exc
        raise


def _refuse_foreign(root: Path) -> None:
    """A folder with other things in it is somebody's; variegate only writes into its own or an empty one."""
    if root.is_dir() and not (root / "run.db").exists():
        others = sorted(entry.name for entry in root.iterdir() if entry.name not in {"run.lock", "logs"})
        if others:
            text = f"is not empty and no run folder (it has {others[0]!r})"
            raise RunFolderError(Problem(str(root), text, "choose a new or empty --out folder"))


def sweep_temporary(root: Path) -> None:
    """Remove what a killed writer left below a folder: only names that write_atomic makes, only inside the run folder."""
    for path in root.rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _lock(root: Path) -> int:
    """Hold the folder's lock; the kernel releases it when the process ends, however it ends."""
    handle = os.open(root / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(handle)
        if exc.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            text = "another variegate process is working in this folder"
            raise RunFolderError(Problem(str(root), text, "wait for it, or choose another --out folder")) from exc
        raise
    return handle
