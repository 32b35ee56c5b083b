"""What a run writes for its watchers: whole lines, the same for TensorBoard, nothing of steps that are taken again."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dnnlib.errors import UserError
from multiscale.runs.journal import EVENTS, SHEET_WIDTH_PX, STATS, Journal, drop_lines_after, read_stats

ROOT = Path(__file__).parents[2]


def opened(folder: Path) -> EventAccumulator:
    """The run as TensorBoard reads it."""
    return EventAccumulator(str(folder)).Reload()


def curve(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in opened(folder).Scalars(tag)}


def test_tensorboard_shows_what_the_lines_say(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.write(0, {"swd": [0.5, 0.25], "swd mean": 0.375})
        journal.write(1500, {"loss/D": 1.25, "logits/real by octave": [0.5, None, -2.0]})
        journal.write(3000, {"loss/D": 0.75})
    assert read_stats(tmp_path) == [
        {"kimg": 0.0, "swd": [0.5, 0.25], "swd mean": 0.375},
        {"kimg": 1.5, "loss/D": 1.25, "logits/real by octave": [0.5, None, -2.0]},
        {"kimg": 3.0, "loss/D": 0.75},
    ]
    assert set(opened(tmp_path).Tags()["scalars"]) == {
        "swd/octave 0",
        "swd/octave 1",
        "swd mean",
        "loss/D",
        "logits/real by octave/octave 0",
        "logits/real by octave/octave 2",
    }
    assert curve(tmp_path, "loss/D") == {1500: 1.25, 3000: 0.75}
    assert curve(tmp_path, "swd/octave 1") == {0: 0.25}


def test_what_is_written_can_be_read_at_once(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.write(1000, {"loss/D": 1.0})
        assert len(read_stats(tmp_path)) == 1
        assert curve(tmp_path, "loss/D") == {1000: 1.0}


def test_a_run_that_goes_on_forgets_what_lies_behind_its_state(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for images in (0, 1000, 2000, 3000, 4000):
            journal.write(images, {"loss/D": images / 1000})
    with open(tmp_path / STATS, "a") as stream:
        stream.write('{"kimg": 5.0, "lo')
    with Journal(tmp_path, 2000) as journal:
        assert [line["kimg"] for line in read_stats(tmp_path)] == [0, 1, 2]
        assert curve(tmp_path, "loss/D") == {0: 0, 1000: 1, 2000: 2}
        journal.write(3500, {"loss/D": 9.0})
    assert [line["kimg"] for line in read_stats(tmp_path)] == [0, 1, 2, 3.5]
    assert curve(tmp_path, "loss/D") == {0: 0, 1000: 1, 2000: 2, 3500: 9}
    Journal(tmp_path, 0).close()  # begun again before its first state
    assert curve(tmp_path, "loss/D") == {0: 0}


def test_a_tensorboard_that_is_open_forgets_them_too(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for images in (1000, 2000, 3000):
            journal.write(images, {"loss/D": images / 1000, "swd": [1.0]})
    watching = opened(tmp_path)
    with Journal(tmp_path, 1000) as journal:
        journal.write(1500, {"loss/D": 9.0})
        watching.Reload()
        assert [(event.step, event.value) for event in watching.Scalars("loss/D")] == [(1000, 1), (1500, 9)]
        assert [event.step for event in watching.Scalars("swd/octave 0")] == [1000]


@pytest.mark.parametrize("damage", [b"", b"\x20", b"\xff" * 30, (5).to_bytes(8, "little") + b"\xff" * 13])
def test_event_files_are_cut_where_their_steps_are_taken_again_or_the_disk_was_full(tmp_path, damage):
    with Journal(tmp_path, 0) as journal:
        journal.write(1000, {"loss/D": 1.0})
        (path,) = tmp_path.glob(EVENTS)
        whole = path.read_bytes()
        if not damage:
            journal.write(2000, {"loss/D": 2.0})
    with open(path, "ab") as stream:
        stream.write(damage)
    Journal(tmp_path, 1000).close()
    assert path.read_bytes() == whole


def test_sheets_are_shown_no_wider_than_a_screen(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.show(0, "samples", np.full((500, 2 * SHEET_WIDTH_PX, 3), 200, np.uint8))
        journal.show(1000, "samples", np.full((60, 80, 3), (200, 100, 50), np.uint8))
    large, small = opened(tmp_path).Images("samples")
    assert (large.step, large.width, large.height) == (0, SHEET_WIDTH_PX, 250)
    assert (small.step, small.width, small.height) == (1000, 80, 60)
    pixels = np.asarray(Image.open(io.BytesIO(small.encoded_image_string)))
    assert np.abs(pixels.astype(int) - (200, 100, 50)).max() <= 3


def test_lines_that_were_cut_off_or_are_not_ours_are_skipped(tmp_path):
    assert read_stats(tmp_path) == []
    (tmp_path / STATS).write_bytes(b'{"kimg": 1.0}\n[1, 2]\n{"other": 3}\n\xff\n\n{"kimg": 2.0, "loss')
    assert read_stats(tmp_path) == [{"kimg": 1.0}]


def test_lines_are_left_alone_where_none_is_to_be_dropped(tmp_path):
    path = tmp_path / STATS
    drop_lines_after(path, 1000)
    assert not path.exists()
    path.write_text('{"kimg": 1.0}\n{"kimg": 2.0}\n')
    before = path.stat()
    drop_lines_after(path, 2000)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    drop_lines_after(path, 1000)
    assert path.read_text() == '{"kimg": 1.0}\n'


def test_a_line_without_its_end_does_not_swallow_the_next(tmp_path):
    (tmp_path / STATS).write_text('{"kimg": 1.0}')
    with Journal(tmp_path, 1000) as journal:
        journal.write(2000, {})
    assert [line["kimg"] for line in read_stats(tmp_path)] == [1, 2]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"^Cannot write .*events\.out\.tfevents\.\S+: No such file or directory\.$"):
        Journal(tmp_path / "none", 0)
    with Journal(tmp_path, 0) as journal:
        (tmp_path / STATS).mkdir()
        with pytest.raises(UserError, match=r"^Cannot write .*stats\.jsonl: Is a directory\.$"):
            journal.write(0, {"loss/D": 1.0})


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes (Unix)")
@pytest.mark.parametrize(
    ("limit", "action", "name"),
    [
        (20, "None", "events"),
        (4000, "[journal.write(i, {'loss/D': 1.0, 'a name ' * 20: 2.0}) for i in range(1000)]", "events"),
        (4000, "[journal.write(i, {'swd': [None] * 200}) for i in range(1000)]", "stats.jsonl"),
        (4000, "journal.show(0, 'samples', numpy.random.randint(0, 256, (500, 500, 3), numpy.uint8))", "events"),
    ],
)
def test_a_full_disk_ends_the_call_that_meets_it_with_one_sentence(tmp_path, limit, action, name):
    program = f"""
import resource, sys, numpy
from multiscale.runs.journal import Journal
from dnnlib.errors import UserError
import tensorboard.compat.proto.event_pb2, tensorboard.summary.writer.record_writer
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    with Journal(__import__("pathlib").Path({str(tmp_path)!r}), 0) as journal:
        {action}
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Cannot write {tmp_path}/{name}")
    assert done.stdout.endswith(": File too large.\n")
    for line in read_stats(tmp_path):
        assert "kimg" in line
    if limit > 20 and name == "events":
        opened(tmp_path)


def test_event_files_of_one_second_are_files_of_their_own(tmp_path):
    for images in (0, 1000, 2000):
        Journal(tmp_path, images).close()
    assert len(list(tmp_path.glob(EVENTS))) == 3


def test_numbers_that_are_not_finite_stay_to_be_seen(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.write(1000, {"loss/D": float("nan")})
    assert np.isnan(read_stats(tmp_path)[0]["loss/D"])
    assert np.isnan(curve(tmp_path, "loss/D")[1000])
    assert json.loads((tmp_path / STATS).read_text())
