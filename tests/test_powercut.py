"""The rig that cuts the power (`tests.powercut`): its model of a disk, and a few real cuts."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from powercut.checking import Found, look
from powercut.machine import FILE_SYSTEMS, copy_sparse, reason_not_to
from powercut.messages import STREAMED, message, number_of
from powercut.pessimist import Pessimist, calls
from powercut.states import Crash, Log, crashes

SECTOR = 512


def _log(path: Path, *records: tuple[str, int, bytes]) -> Log:
    with open(path, "wb") as file:
        for what, offset, data in records:
            file.write(struct.pack("QQQ", ord(what), offset, len(data)))
            file.write(b"" if what == "Z" else data)
    return Log.read(path)


def _a_log(path: Path) -> Log:
    """Two writes, a flush, two writes, something told, a flush, one more write."""
    return _log(
        path,
        ("W", 0, b"a" * 1024),
        ("W", 4096, b"b" * 512),
        ("F", 0, b""),
        ("W", 0, b"c" * 2048),
        ("Z", 4096, bytes(512)),
        ("M", 0, b"told"),
        ("F", 0, b""),
        ("W", 8192, b"d" * 4096),
    )


def test_crashes_keep_what_was_flushed_and_any_part_of_the_rest(tmp_path: Path) -> None:
    """Each crash has all writes before the last flush before its cut, and of those after it only such as it may."""
    log = _a_log(tmp_path / "log")
    flushed_at = [0, 0, 0, 2, 2, 2, 2, 4, 4]
    seen_at = [0, 1, 2, 2, 3, 4, 4, 4, 5]
    found = crashes(log, 60, SECTOR)
    assert len(set(found)) == len(found) > 20
    for crash in found:
        assert crash.flushed == flushed_at[crash.cut]
        assert all(crash.flushed <= number < seen_at[crash.cut] for number in crash.kept)
        for number, sectors in crash.torn:
            assert number in crash.kept
            assert len(sectors) < log.writes[number].length // SECTOR
    assert {crash.kept for crash in found if crash.flushed == 2} == {(), (2,), (3,), (2, 3)}
    assert any(crash.torn for crash in found)
    assert [log.told_before(cut) for cut in (5, 6)] == [[], [b"told"]]


def test_crashes_are_the_same_each_time(tmp_path: Path) -> None:
    """A seed gives the same crashes: what was found once can be found again."""
    log = _a_log(tmp_path / "log")
    assert crashes(log, 20, SECTOR, 1) == crashes(log, 20, SECTOR, 1) != crashes(log, 20, SECTOR, 2)


def test_disk_after_a_crash(tmp_path: Path) -> None:
    """The disk of a crash has the sectors that were kept, and those that were there before for all others."""
    log = _a_log(tmp_path / "log")
    with open(tmp_path / "disk", "w+b", buffering=0) as disk:
        disk.truncate(16384)
        for write in log.writes[:2]:
            log.apply(disk.fileno(), write)
        Crash(5, 2, (2, 3), ((2, (1, 3)),)).complete(log, disk.fileno(), SECTOR)
        assert os.pread(disk.fileno(), 2048, 0) == b"a" * 512 + b"c" * 512 + bytes(512) + b"c" * 512
        assert os.pread(disk.fileno(), 512, 4096) == bytes(512)


def test_copies_have_all_but_holes(tmp_path: Path) -> None:
    """A sparse copy reads as its source does."""
    with open(tmp_path / "source", "wb") as file:
        for offset in (0, 5 << 20, 9 << 20):
            file.seek(offset)
            file.write(b"x" * 5000)
        file.truncate(12 << 20)
    copy_sparse(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "source").read_bytes()
    assert (tmp_path / "copy").stat().st_blocks <= (tmp_path / "source").stat().st_blocks


@pytest.mark.parametrize("size", [0, 3000, STREAMED])
def test_messages_are_known_whole(size: int) -> None:
    """A message is known by its bytes, and by nothing less than all of them."""
    whole = message(7, size)
    assert number_of(whole) == 7
    for torn in (
        b"",
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b"\n",
        b"\0" * len(whole),
        whole[:-100] + bytes(100),
    ):
        assert number_of(torn) is None


def test_look_sees_what_is_lost_and_torn(tmp_path: Path) -> None:
    """Lost, torn, torn though acknowledged, and lost though not the newest, are each told."""
    new = tmp_path / "m" / "new"
    new.mkdir(parents=True)
    (new / "1").write_bytes(message(1))
    (new / "2").write_bytes(message(2)[:99])
    (new / "4").write_bytes(message(4))

    def told(*names: str, promised: bool) -> list[dict[str, object]]:
        return [
            {"what": "delivered", "path": f"{new}/{name}", "number": int(name), "promised": promised, "keywords": []}
            for name in names
        ]

    found = Found()
    look(tmp_path, told("1", "2", "3", promised=True), found, tears=False)
    assert [fault.partition(":")[0] for fault in found.faults] == [
        "torn",
        "torn, though acknowledged",
        "lost, though acknowledged",
    ]
    (new / "2").unlink()
    for names, synced, faults in (("143", 0, 0), ("134", 0, 1), ("143", 3, 1), ("143", 2, 0)):
        found = Found()
        packets = told(*names, promised=False)
        packets[synced:synced] = [{"what": "synced"}] if synced else []
        look(tmp_path, packets, found, tears=False)
        assert len(found.faults) == faults, (names, synced, found)


@pytest.mark.heavy
def test_real_power_cuts() -> None:
    """A real program's disk, cut: what was acknowledged is there, and nothing is left behind. `.ci/run` has more."""
    if (reason := reason_not_to() or reason_not_to(FILE_SYSTEMS["ext4"])) is not None:
        pytest.skip(reason)
    command = [sys.executable, "-m", "tests.powercut", "--only", "ext4", "--scenario", "width-16"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ext4: 7 states" in done.stdout
    assert "powercut-" not in Path("/proc/mounts").read_text()


TOLD = {"what": "delivered", "path": "/s/m/new/b", "promised": True, "keywords": []}
TELLING = f"2 write(1<pipe:[1]>, {json.dumps(json.dumps(TOLD))}, 90) = 90"

TRACE = """\
1 mkdir("/s/m", 0777) = 0
1 mkdir("/s/m/new", 0700) = 0
1 mkdir("/s/m/tmp", 0700) = 0
1 openat(7</s/m/tmp>, "a", O_RDWR|O_CREAT|O_EXCL, 0600) = 8</s/m/tmp/a>
1 write(8</s/m/tmp/a>, "text", 4) = 4
1 fsync(8</s/m/tmp/a>) = 0
1 renameat2(7</s/m/tmp>, "a", 9</s/m/new>, "b", RENAME_NOREPLACE) = 0
1 fsync(9</s/m/new>) = 0
1 fsync(4</s/m>) = 0
1 fsync(5</s>) = 0
TELLING
""".replace("TELLING", TELLING).splitlines()


def _pessimist(lines: list[str]) -> list[str]:
    found = Pessimist("/s").follow(calls(lines))
    assert found.acknowledged == 1
    return [fault.partition("/")[0].strip() + fault.rpartition("/")[2] for fault in found.faults]


def test_pessimist_is_content_with_all_syncs() -> None:
    """A delivery that syncs all that it has made, in the order of the protocol, has nothing wrong with it."""
    assert _pessimist(TRACE) == []


@pytest.mark.parametrize(
    ("missing", "faults"),
    [
        (5, ["visible before its bytes are durable:b", "acknowledged before its bytes are durable:b"]),
        (7, ["acknowledged before the nameb is durable"]),
        (8, ["acknowledged before the namenew is durable"]),
        (9, ["acknowledged before the namem is durable"]),
    ],
)
def test_pessimist_misses_each_sync(missing: int, faults: list[str]) -> None:
    """Without any one of the syncs it says what would be lost, and so it does when that one has failed."""
    assert _pessimist(TRACE[:missing] + TRACE[missing + 1 :]) == faults
    failed = TRACE[missing].replace("= 0", "= -1 EIO (Input/output error)")
    assert _pessimist([*TRACE[:missing], failed, *TRACE[missing + 1 :]]) == faults


def test_pessimist_counts_a_sync_from_its_beginning() -> None:
    """A sync that was under way when the name was made says nothing of that name."""
    late = [*TRACE[:6], "3 fsync(9</s/m/new> <unfinished ...>", TRACE[6], "3 <... fsync resumed>) = 0", *TRACE[8:]]
    assert _pessimist(late) == ["acknowledged before the nameb is durable"]


def test_pessimist_knows_other_syncs() -> None:
    """Kernel AIO's syncs count when they are reported without an error; syncfs(2) counts for everything."""
    submitted = "1 io_submit(0x7f00, 1, [{aio_data=0x2, aio_lio_opcode=IOCB_CMD_FSYNC, aio_fildes=8</s/m/tmp/a>}]) = 1"
    for result, faults in ((0, 0), (-5, 2)):
        ended = f"1 io_getevents(0x7f00, 1, 128, [{{data=0x2, obj=0x1, res={result}, res2=0}}], NULL) = 1"
        assert len(_pessimist([*TRACE[:5], submitted, ended, *TRACE[6:]])) == faults
    assert _pessimist([*TRACE[:5], TRACE[5], TRACE[6], "1 syncfs(4</s/m>) = 0", TRACE[10]]) == []
