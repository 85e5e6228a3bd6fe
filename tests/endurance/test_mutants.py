"""
Damaged files, hostile servers and random command lines: see `swinbert.endurance`.

    pytest -n 0 -s -m endurance tests/endurance/test_mutants.py --minutes 60 --seed 1
"""

import json
import signal
import sys
from random import Random

import pytest

if sys.platform == "win32":
    pytest.skip("processes cannot be limited", allow_module_level=True)
import rigged_targets

from swinbert.endurance import self_test
from swinbert.endurance import targets as all_targets
from swinbert.endurance.cases import READ, Case, Outcome
from swinbert.endurance.mutation import draw_bytes, draw_header, draw_text, mutate
from swinbert.endurance.shrinking import shrink
from swinbert.endurance.worker import Watched


def test_a_few_mutants_of_each_kind(tmp_path):
    result = self_test(minutes=2, seed=5, output=tmp_path / "findings", most_cases=4)
    assert not result.num_findings, (tmp_path / "findings" / "findings.jsonl").read_text()
    assert {counts.cases for counts in result.targets.values()} == {4}
    assert not (tmp_path / "findings").exists()


@pytest.mark.endurance
def test_many_mutants(request, capsys):
    minutes, seed = request.config.getoption("--minutes"), request.config.getoption("--seed")
    output = request.config.rootpath / "outputs" / f"endurance-{seed}"
    result = self_test(minutes, seed, output)
    with capsys.disabled():
        print(f"\n{result}")
    assert not result.num_findings


# --- The suite itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path):
    process = Watched(rigged_targets.targets, tmp_path, cpu_seconds=1)
    yield process
    process.stop()


def case(how: str, *numbers: int) -> Case:
    return Case("rigged", "sample", [[number] for number in numbers], {"how": how, "strict": True})


def test_what_happens_to_a_process_is_a_finding(watched):
    assert watched.run(case("nothing", 3, 7)) == Outcome(READ)
    crash = watched.run(case("crash", 3, 7))
    assert crash.signature == ("crash", "SIGABRT") and "rigged_targets.py" in crash.details
    foreign = watched.run(case("raise", 3, 7))
    assert foreign.signature == ("foreign exception", "KeyError in rigged_targets.py, run")
    assert watched.run(case("crash", 3)) == Outcome(READ)  # a new process goes on


def test_a_hang_is_a_finding(watched):
    hang = watched.run(case("hang", 3, 7))
    assert hang.signature == ("hang", "") and "rigged_targets.py" in hang.details


def test_shrinking_keeps_what_fails(watched):
    failing = case("raise", 5, 3, 2, 8, 7, 4)
    assert shrink(failing, watched.run(failing), watched.run) == Case("rigged", "sample", [[3], [7]], {"how": "raise"})


def test_findings_are_written_down_and_known_limits_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(all_targets, "all_targets", rigged_targets.targets)
    monkeypatch.setattr(all_targets, "write_samples", lambda folder, clips: None)
    monkeypatch.setattr(
        rigged_targets.Rigged, "draw", lambda self, random: case(random.choice(["limit", "raise"]), 7, 1, 3)
    )
    results = [self_test(1, seed=2, output=tmp_path / name, most_cases=8) for name in "ab"]
    (counts,) = results[0].targets.values()
    assert counts.cases == 8 and counts.known["known limit"] + counts.findings["foreign exception"] == 8
    assert results[0].targets["rigged"].findings == results[1].targets["rigged"].findings
    assert results[0].num_findings and "known limit" in str(results[0])
    first, *_ = map(json.loads, (tmp_path / "a" / "findings.jsonl").read_text().splitlines())
    assert first["operations"] == [[7], [3]] and "KeyError" in first["details"] and first["seed"] == 2
    assert (tmp_path / "a" / first["file"]).read_bytes() == bytes([7, 3])


def test_ctrl_c_ends_with_the_counts(monkeypatch):
    monkeypatch.setattr(all_targets, "all_targets", rigged_targets.targets)
    monkeypatch.setattr(all_targets, "write_samples", lambda folder, clips: None)
    monkeypatch.setattr(rigged_targets.Rigged, "draw", lambda self, random: case("nothing"))

    def interrupt(result):
        if result.targets["rigged"].cases == 3:
            signal.raise_signal(signal.SIGINT)

    result = self_test(1, announce=interrupt)
    assert not result.complete and result.targets["rigged"].cases == 3 and "Interrupted" in str(result)


def test_unknown_targets_are_refused(monkeypatch):
    monkeypatch.setattr(all_targets, "write_samples", lambda folder, clips: None)
    monkeypatch.setattr(all_targets, "all_targets", rigged_targets.targets)
    with pytest.raises(ValueError, match="Expected targets of rigged, got x"):
        self_test(1, targets=["x"])


@pytest.mark.parametrize("draw", [draw_bytes, draw_text, draw_header])
def test_any_part_of_a_mutation_can_be_applied_and_written_down(draw):
    content = {
        draw_bytes: bytes(range(256)) * 3,
        draw_text: b'{"a": [1, {"b": "c"}], "d": null}',
        draw_header: (37).to_bytes(8, "little") + b'{"w": {"dtype": "F32", "shape": [1]}}' + bytes(8),
    }[draw]
    changed = 0
    for seed in range(300):
        operations = draw(Random(seed), content)
        assert json.loads(json.dumps(operations)) == operations or "NaN" in json.dumps(operations)
        assert mutate(content, operations) == mutate(content, draw(Random(seed), content))
        changed += mutate(content, operations) != content
        for number in range(len(operations)):
            mutate(b"", operations[number:]), mutate(content, operations[:number])
    assert changed > 250
