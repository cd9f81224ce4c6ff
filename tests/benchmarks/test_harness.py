"""The harness of the benchmarks: what is measured in which order, what is missing and said so, and the table.

Rules of this file: no peer is needed; our nodes and the ceiling are measured for real, for fractions of a second.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as harness
from benchmarks import building, single
from benchmarks.aims import ROWS, Outcome, Wronged, judge_row
from benchmarks.building import Missing, find_go, installed_program, python_module
from benchmarks.figures import Case, Figure
from benchmarks.hosting import StandingHost
from benchmarks.nodes import Process, cpu_s, free_ranges
from benchmarks.plan import Step, later_rounds, steps_for, work_of_plots, work_of_rows
from benchmarks.redis import parse_line
from benchmarks.report import aims_table, as_json, columns, figures_table, number, wronged_lines
from benchmarks.systems import HOSTS, Kind, gather_leaders, host_of, settings_of_systems

CASE = Case(2, 8)


class FakeHost(StandingHost):
    """A system whose figures are made up."""

    asked = 0

    def __init__(self, groups: int, applied: list[int] | None = None, missing: str = "") -> None:
        super().__init__(groups)
        self._applied = applied or [7, 7, 7]
        self._missing = missing

    def start(self) -> None:
        if self._missing:
            raise Missing(self._missing)

    def stop(self) -> None:
        pass

    def pids(self) -> list[int]:
        return [os.getpid()]

    def load(self, system: str, case: Case, seconds: float) -> dict[str, Any]:
        return {
            "writes": 100,
            "seconds": 0.5,
            "writes_per_s": 200.0,
            "p50_ms": 1,
            "p99_ms": 2,
            "p999_ms": 3,
            "cpu_s": 0,
        }

    def applied(self) -> list[int]:
        return self._applied


def test_work_is_gathered_by_host_and_groups_in_its_order() -> None:
    hosts = {"bytes": "ours", "command": "ours", "peer": "theirs"}
    work = [
        ("bytes", Case(1, 1)),
        ("peer", Case(1, 1)),
        ("command", Case(1, 1)),
        ("bytes", Case(64, 1)),
        ("bytes", Case(1, 1)),
        ("unknown", Case(1, 1)),
    ]
    assert steps_for(work, hosts.get) == [
        Step("ours", 1, (("bytes", Case(1, 1)), ("command", Case(1, 1)))),
        Step("theirs", 1, (("peer", Case(1, 1)),)),
        Step("ours", 64, (("bytes", Case(64, 1)),)),
    ]


def test_later_rounds_leave_out_what_is_measured_once() -> None:
    case = Case(1, 1)
    steps = [
        Step("a", 1, (("bytes", case),)),
        Step("b", 1, (("redis", case),)),
        Step("c", 1, (("redis", case), ("x", case))),
    ]
    assert later_rounds(steps) == [Step("a", 1, (("bytes", case),)), Step("c", 1, (("x", case),))]


def test_a_compiled_build_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "ROOT", tmp_path)
    with pytest.raises(Missing, match="not there"):
        building.compiled_worker()
    python = tmp_path / ".venv-compiled" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    with pytest.raises(Missing, match="older than the sources"):
        building.compiled_worker()


def test_what_rows_and_plots_compare_is_measured() -> None:
    work = work_of_rows(ROWS)
    for row in ROWS:
        assert {(system, row.case) for system in row.ours} <= set(work)
        assert any(host_of(peer) for peer in row.peers), f"{row.name} has no peer that could be started"
    assert {case.groups for _, case in work_of_plots()} > {1, 64}


def test_every_system_says_its_settings() -> None:
    assert all(settings_of_systems().values())
    assert all(host_of(system) == name for name, kind in HOSTS.items() for system in kind.systems)
    assert host_of("nobody") is None


def run_with(monkeypatch: pytest.MonkeyPatch, **options: Any) -> harness.Run:
    monkeypatch.setitem(HOSTS, "fake", Kind(lambda groups: FakeHost(groups, **options), {"fake": "made up"}))
    run = harness.Run(seconds=0.1)
    run.measure(Step("fake", 2, (("fake", CASE),)), "test")
    return run


def test_a_step_gives_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(monkeypatch)
    (figure,) = run.figures
    assert (figure.system, figure.case, figure.per_s, figure.p999_ms) == ("fake", CASE, 200.0, 3)
    assert not run.missing
    assert not run.failed


def test_a_peer_that_is_not_there_is_missing_with_its_reason_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(monkeypatch, missing="not installed here")
    assert run.missing == {"fake": "not installed here"}
    assert not run.figures
    assert not run.failed
    assert "fake: not installed here" in capsys.readouterr().err


def test_replicas_that_differ_make_the_run_fail_and_their_figures_void(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.hosting.APPLYING_PATIENCE_S", 0.0)
    run = run_with(monkeypatch, applied=[7, 7, 6])
    assert run.failed
    assert not run.figures
    assert "[7, 7, 6]" in run.missing["fake"]


def test_what_is_missing_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(monkeypatch, missing="not installed here")
    monkeypatch.setitem(HOSTS, "fake", Kind(FakeHost, {"fake": "made up"}))
    run.measure(Step("fake", 2, (("fake", CASE),)), "test")
    assert not run.figures


def test_go_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("GO", raising=False)
    monkeypatch.setattr(building, "_GO_PLACES", ())
    with pytest.raises(Missing, match="Go is not installed"):
        find_go()


def test_a_go_module_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text("#!/bin/sh\necho 'example.org/raft: module not found' >&2\nexit 1\n")
    go.chmod(0o755)
    monkeypatch.setenv("GO", str(go))
    monkeypatch.setattr(building, "RESULTS", tmp_path)
    building.go_program.cache_clear()
    with pytest.raises(Missing, match=r"hashicorp failed: example\.org/raft: module not found"):
        building.go_program("hashicorp")


def test_programs_and_modules_that_are_not_there_are_named_with_the_way_to_them() -> None:
    with pytest.raises(Missing, match="apt-get install some-package"):
        installed_program("no-such-program-here", "some-package")
    with pytest.raises(Missing, match="pip install NoSuchThing"):
        python_module("no_such_module_here", "NoSuchThing")


def test_a_process_that_dies_says_why(tmp_path: Path) -> None:
    program = "import sys; print('it hurts', file=sys.stderr); sys.exit(3)"
    process = Process([sys.executable, "-c", program], tmp_path / "log")
    with pytest.raises(RuntimeError, match="status 3: it hurts"):
        process.ask(op="counts")
    process.end()


def test_a_node_that_never_leads_ends_the_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("benchmarks.systems._LEADING_PATIENCE_S", 0.0)
    program = "import sys\nfor line in sys.stdin: print('{\"led\": 0}', flush=True)"
    process = Process([sys.executable, "-c", program], tmp_path / "log")
    with pytest.raises(RuntimeError, match="did not become the leader"):
        gather_leaders([process], 1)
    used = cpu_s(process.pid)
    assert used is None or used >= 0
    process.end()
    assert process.pid > 0


def test_a_line_of_redis_benchmark_is_read() -> None:
    text = '"test","rps","p50_latency_ms","p99_latency_ms"\n"SET","60975.61","10.543","23.055"\n'
    assert parse_line(text) == {"rps": 60975.61, "p50_latency_ms": 10.543, "p99_latency_ms": 23.055}
    with pytest.raises(RuntimeError, match="ERR unknown"):
        parse_line("Error from server: ERR unknown command")


def test_ranges_of_ports_do_not_overlap() -> None:
    first, second, third = sorted(free_ranges(3, 10))
    assert second - first >= 10
    assert third - second >= 10


def test_our_nodes_and_the_ceiling_are_measured_for_real() -> None:
    run = harness.Run(seconds=0.2)
    run.measure(Step("multiraft", 2, (("bytes", CASE), ("command", CASE), ("bytes", Case(2, 8, "reads")))), "test")
    run.measure(Step("ceiling", 2, (("ceiling", CASE),)), "test")
    assert not run.missing
    assert [figure.system for figure in run.figures] == ["bytes", "command", "bytes", "ceiling"]
    for figure in run.figures:
        assert figure.per_s > 0
        assert figure.p999_ms is not None
        assert 0 < figure.p50_ms <= figure.p99_ms <= figure.p999_ms
    syncs = {(figure.system, figure.case.op): figure.syncs_per_s for figure in run.figures}
    assert syncs["bytes", "reads"] == 0
    for system in ("bytes", "command", "ceiling"):
        assert syncs[system, "writes"], f"{system} answered writes without a sync"


# ----------------------------------------------------------------------------------------------------------- table


FIGURES = [
    Figure("bytes", Case(64, 1000), 100_000, 9.5, 12, 15.25, 10, 30, 70, 200),
    Figure("ceiling", Case(64, 1000), 200_000, 4, 8, 9, 3, 7, 150, 400),
    Figure("bytes", Case(1, 1), 1_234, 0.5, 1, 2),
]


def test_the_table_says_ratio_aim_and_whether_it_is_met() -> None:
    row = next(row for row in ROWS if row.name == "ceiling-bytes")
    absent = next(row for row in ROWS if row.name == "etcd-64")
    head, line, missing = aims_table(
        [judge_row(row, FIGURES, {}), judge_row(absent, FIGURES, {"etcd": "not installed"})]
    )
    assert head.split()[:2] == ["row", "work"]
    assert "100,000  ceiling  200,000  0.50x      0.23x  >= 0.8x       NO" in line
    assert " missing " in missing
    assert "etcd: not installed" in missing


def test_a_limit_stands_in_the_table_with_its_unit() -> None:
    outcome = Outcome("idle", "work", "multiraft", 0.5, "-", None, 0.5, "<= 1 %", True, unit="%")
    assert "0.50 %          -  <= 1 %  yes" in aims_table([outcome])[1]


def test_figures_stand_by_case_the_fastest_first() -> None:
    lines = figures_table(FIGURES, {"ceiling": "nothing that could fail"})
    assert [line.split()[:5] for line in lines[1:4]] == [
        ["1", "1", "writes", "bytes", "1,234"],
        ["64", "1000", "writes", "ceiling", "200,000"],
        ["64", "1000", "writes", "bytes", "100,000"],
    ]
    assert lines[3].split()[5:] == ["9.50", "12.0", "15.2", "10.0", "30.0", "70.0", "200", "500", "1"]
    assert lines[-1] == "ceiling: nothing that could fail"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.123, "0.12"), (12.34, "12.3"), (123.4, "123"), (1_234_567.0, "1,234,567")]
)
def test_figures_are_as_long_as_they_deserve(value: float | None, text: str) -> None:
    assert number(value) == text


def test_columns_are_aligned() -> None:
    assert columns([("a", "b"), ("long", "12")], left=(0,)) == ["a      b", "long  12"]


def test_a_wronged_peer_is_explained() -> None:
    (line,) = wronged_lines([Wronged("etcd", Case(1, 64), 0.5, 0.6)], {"etcd": "why so"})
    measured, machine = line.split("; ")
    assert measured == "etcd, 1 groups, 64 in flight, writes: 0.50 of its known rate"
    assert machine == "the ceiling is at 0.60 of its own known rate (why so)"


def test_the_run_is_json() -> None:
    found = json.loads(json.dumps(as_json({"rounds": 1}, FIGURES, [], {"value": 1.0}, {"etcd": "absent"})))
    assert [Figure(**{**each, "case": Case(**each["case"])}) for each in found["figures"]] == FIGURES
    assert found["missing"] == {"etcd": "absent"}


def test_rows_are_chosen_by_name() -> None:
    options = harness.parse(["--rows", "etcd-64", "idle-10000"])
    assert [row.name for row in options.rows] == ["etcd-64"]
    assert [limit.name for limit in options.limits] == ["idle-10000"]
    assert [names[0] for names, _ in single.chosen(options)] == ["idle_10000_cpu_percent"]


def test_a_sustained_run_alone_has_its_rows() -> None:
    options = harness.parse(["--rows", "--sustained", "30"])
    assert not options.rows
    assert [limit.name for limit in options.limits] == ["sustained-rate", "sustained-p99"]


def test_a_row_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        harness.parse(["--rows", "etcd-65"])
    assert "no row is named etcd-65" in capsys.readouterr().err


def test_everything_is_measured_in_full_and_comparisons_alone_otherwise() -> None:
    full = harness.parse(["--full"])
    given = {name for names, _ in single.chosen(full) for name in names}
    assert given >= {limit.value for limit in full.limits}
    assert full.sustained == 600
    assert not single.chosen(harness.parse(["--quick"]))


def test_single_measurements_that_fail_are_missing_and_the_others_go_on() -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("no room")

    values, missing = single.measure([(("first", "second"), fails), (("third",), lambda: {"third": 3.0})])
    assert values == {"third": 3.0}
    assert missing == {"first": "no room", "second": "no room"}


def test_without_matplotlib_there_are_no_plots_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "benchmarks.plots", raising=False)
    (line,) = single.draw({"figures": [], "values": {}})
    assert line.startswith("no plots: ")
    assert "extra `bench`" in line
