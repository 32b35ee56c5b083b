"""The harness of ``make gpu``, with parts that need no GPU: each part's line is written, whatever becomes of the part."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Part


def part(name, code, limit=60.0, result=gpu.lines_of, **options):
    return Part(name, [sys.executable, "-c", code], limit, result, **options)


def run_all(tmp_path, monkeypatch, parts, *arguments):
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(gpu, "parts", lambda folder: parts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA Imaginary 9")
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return ended.value.code, [json.loads(line) for line in out.read_text().splitlines()]


def test_parts_follow_each_other_whatever_becomes_of_one(tmp_path, monkeypatch, capsys):
    parts = [
        part("good", "print('a'); print('b')"),
        part("bad", "import sys; print('why'); sys.exit(3)"),
        part("slow", "import time; print('begun', flush=True); time.sleep(600)", limit=5.0),
        part("empty", "", result=gpu.report_of),
        Part("checked", ["no-such-program-here"], 10, gpu.lines_of, optional=True),
        part("last", "print('c')"),
    ]
    code, lines = run_all(tmp_path, monkeypatch, parts)
    assert code == 1
    by_name = {line["part"]: line for line in lines}
    assert list(by_name) == ["good", "bad", "slow", "empty", "checked", "last", "all"]
    assert by_name["good"]["ok"]
    assert by_name["good"]["result"] == ["a", "b"]
    assert by_name["bad"]["exit_code"] == 3
    assert "why" in by_name["bad"]["output"]
    assert "stopped after" in by_name["slow"]["error"]
    assert "begun" in by_name["slow"]["output"]
    assert "no result" in by_name["empty"]["error"]
    assert by_name["checked"]["left_out"]
    assert by_name["last"]["ok"]
    assert by_name["all"]["machine"]["gpu"] == "NVIDIA Imaginary 9"
    assert "slow" in capsys.readouterr().out


def test_all_good_is_exit_code_0_and_the_whole_has_a_limit(tmp_path, monkeypatch):
    assert run_all(tmp_path, monkeypatch, [part("good", "")])[0] == 0
    code, lines = run_all(tmp_path, monkeypatch, [part("good", "")], "--limit", "0")
    assert code == 1
    assert "no time left" in lines[0]["error"]


def test_without_a_gpu_one_sentence_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_its_parts_are_commands_that_are_there(tmp_path):
    root = Path(gpu.__file__).parent.parent
    for each in gpu.parts(tmp_path):
        for file in each.command:
            if file.endswith(".py"):
                assert (root / file).exists(), f"{each.name} names {file}"


def test_the_counts_of_tests_are_read():
    assert gpu.tests_of("..\n89 passed, 8 skipped, 498 deselected in 29.41s\n", Path()) == {"passed": 89, "skipped": 8}
