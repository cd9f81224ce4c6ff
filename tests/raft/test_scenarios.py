"""Runs the transcripts in testdata: each must come out as it stands there, line by line.

`pytest tests/raft/test_scenarios.py --refresh-transcripts` writes them anew; what has changed is then reviewed as a
difference of the files, like any other change.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Final

import pytest

from tests.raft.scenario import transcript
from tests.raft.scene import ScriptError

TESTDATA: Final = Path(__file__).resolve().parent / "testdata"
SCRIPTS: Final = sorted(TESTDATA.glob("*.txt"))

STORIES: Final = {
    "auto_leave_once", "candidate_with_a_slow_disk", "delayed_append", "diverged_logs", "double_add_explicit",
    "double_add_implicit", "election", "joining", "lagging_commit", "leader_forgetting", "pre_vote_and_check_quorum",
    "pre_vote_with_a_bridge", "probe_and_replicate", "read_index", "remove_leader", "remove_leader_cut_off",
    "remove_with_two_cut_off", "replace_leader", "restart_of_all", "simple_add", "slow_follower_after_compaction",
    "snapshot_accepted_by_append_answer", "transfer", "transfer_and_a_beat", "transfer_failed", "window_of_bytes",
    "window_of_messages",
}  # fmt: skip
"""What must be told, whatever else is."""


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    is_now = path.read_text(encoding="utf-8")
    try:
        should_be = transcript(path)
    except ScriptError as problem:
        pytest.fail(str(problem), pytrace=False)
    if request.config.getoption("--refresh-transcripts"):
        path.write_text(should_be, encoding="utf-8")
    elif is_now != should_be:
        difference = difflib.unified_diff(is_now.splitlines(), should_be.splitlines(), path.name, "now", lineterm="")
        pytest.fail("\n".join(difference), pytrace=False)


def test_no_story_is_missing() -> None:
    assert {path.stem for path in SCRIPTS} >= STORIES


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("group voters=1,2\n----\n\n# fine\nelect 1\n----\n", "broken.txt:5: elect 1: there is no command 'elect'"),
        ("campaign 1\n----\n", "broken.txt:1: campaign 1: there is no replica 1"),
        ("group voters=1\ncampaign one\n----\n", "broken.txt:2: campaign one: 'one' is no number"),
        ("group voters=1\ncampaign\n----\n", "broken.txt:2: campaign: a word is missing"),
        ("group voters=1\nstatus 1 please\n----\n", "broken.txt:2: status 1 please: 'please' is no number"),
        ("group voters=1\ncampaign 1 often\n----\n", "broken.txt:2: campaign 1 often: 'often' is not understood"),
        ("group voters=1\ndeliver\n----\n", "broken.txt:2: deliver: there is no such message on the wire"),
        ("group voters=1 speed=3\n----\n", "broken.txt:1: group voters=1 speed=3: 'speed' is not understood"),
    ],
)
def test_a_mistake_in_a_script_names_file_and_line(tmp_path: Path, script: str, said: str) -> None:
    path = tmp_path / "broken.txt"
    path.write_text(script)
    with pytest.raises(ScriptError) as raised:
        transcript(path)
    assert str(raised.value).startswith(said)


def test_what_a_script_prints_takes_the_place_of_what_stood_there(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_text("# Once.\n\ngroup voters=1\nstatus\n----\nsomething else\n")
    assert transcript(path) == (
        "# Once.\n\ngroup voters=1\nstatus\n----\n1: follower, term 1; log ends at 1@1, commit 1\n"
    )
