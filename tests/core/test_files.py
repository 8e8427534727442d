import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from app.core.files import atomic_write, make_private, rotate


def test_only_the_owner_enters_what_was_made(tmp_path: Path) -> None:
    folder = make_private(tmp_path / "home" / "run")
    assert [each.stat().st_mode & 0o777 for each in (folder, folder.parent)] == [0o700, 0o700]
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    assert make_private(shared).stat().st_mode & 0o777 == 0o755, "a folder of the user stays as it is"


def test_a_log_is_rotated_while_a_process_appends_to_it(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    rotate(log, max_bytes=4)
    with log.open("ab", buffering=0) as writer:
        writer.write(b"first")
        rotate(log, max_bytes=5)
        assert log.read_bytes() == b"first"
        rotate(log, max_bytes=4)
        writer.write(b"second")
        assert log.read_bytes() == b"second"
        assert (tmp_path / "train.log.1").read_bytes() == b"first"
        rotate(log, max_bytes=4)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [b"", b"second"]


def test_a_log_is_cut_where_the_disk_has_no_room_for_its_copy(tmp_path: Path) -> None:
    """No file may be larger than 5 bytes: the system refuses the copy, as a full disk would."""
    log = tmp_path / "mongod.log"
    log.write_bytes(b"0123456789")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))
    try:
        rotate(log, max_bytes=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("mongod.log", b"")]


def test_threads_that_write_the_same_file_at_once_do_not_take_each_others_place(tmp_path: Path) -> None:
    path = tmp_path / "thumbnail.jpg"
    both_wrote = threading.Barrier(2)

    def write(text: str) -> None:
        with atomic_write(path, durable=False) as unfinished:
            unfinished.write_text(text)
            both_wrote.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("one", "two")))
    assert path.read_text() in ("one", "two")
    assert list(tmp_path.iterdir()) == [path]
