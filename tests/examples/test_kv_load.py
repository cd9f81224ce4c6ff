"""Loading: what files may hold, how mistakes in them are named, and what counts as acknowledged."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import pytest

from examples.kv.client import Client
from examples.kv.load import (
    BATCH_BYTES,
    LoadError,
    Record,
    Report,
    check_file,
    file_records,
    first_records,
    load,
    unicode_records,
)
from multiraft.errors import DeadlineExceeded


class Recorder(Client):
    """A client that keeps what it is given. `refuse`: the batch with this key is not taken."""

    def __init__(self, refuse: str | None = None) -> None:
        super().__init__(["http://127.0.0.1:1"])
        self.refuse = refuse
        self.batches: list[dict[str, bytes | None]] = []
        self.active = 0
        self.most_active = 0

    async def batch(self, writes: Mapping[str, bytes | None]) -> None:
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        await asyncio.sleep(0)
        self.active -= 1
        if self.refuse in writes:
            raise DeadlineExceeded("scripted")
        self.batches.append(dict(writes))

    @property
    def written(self) -> dict[str, bytes | None]:
        return {key: value for batch in self.batches for key, value in batch.items()}


def test_the_names_of_unicode() -> None:
    records = dict(unicode_records())
    assert records["U+0041"] == b"LATIN CAPITAL LETTER A"
    assert records["U+1F600"] == b"GRINNING FACE"
    assert "U+4E00" not in records
    everything = dict(unicode_records(everything=True))
    assert everything["U+4E00"] == b"CJK UNIFIED IDEOGRAPH-4E00"
    assert len(everything) == sum(unicodedata.name(chr(point), "") != "" for point in range(0x110000))
    if unicodedata.unidata_version == "14.0.0":
        assert (len(records), len(everything)) == (34_527, 138_552)


@pytest.mark.parametrize(
    ("name", "content", "records"),
    [
        ("x.jsonl", '{"key": "a", "value": "1"}\n\n{"value": "2", "key": "b"}', [("a", b"1"), ("b", b"2")]),
        ("x.ndjson", '\ufeff{"key": "ä", "value": "☃\\n"}\r\n', [("ä", "☃\n".encode())]),
        ("x.csv", "key,value\na,1\n\nb,\n", [("a", b"1"), ("b", b"")]),
        ("x.CSV", 'value,key\n"two\nlines, ""quoted""",k\n', [("k", b'two\nlines, "quoted"')]),
        ("x.json", "", []),
    ],
)
def test_files_are_read(tmp_path: Path, name: str, content: str, records: list[Record]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert list(file_records(tmp_path / name)) == records
    assert check_file(tmp_path / name) == len(records)


GOOD_LINE = b'{"key": "a", "value": "1"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", GOOD_LINE + b"{oops\n", "x.jsonl:2: is not JSON"),
        ("x.jsonl", GOOD_LINE + b'["a", "1"]\n', "x.jsonl:2: must be an object"),
        ("x.jsonl", GOOD_LINE + b'{"key": "a"}\n', "x.jsonl:2: must be an object"),
        ("x.jsonl", GOOD_LINE + b'{"key": "a", "value": "1", "ttl": 3}\n', "x.jsonl:2: must be an object"),
        ("x.jsonl", GOOD_LINE + b'{"key": "a", "value": 1}\n', "x.jsonl:2: key and value must be text"),
        ("x.jsonl", GOOD_LINE + b'{"key": "", "value": "1"}\n', "x.jsonl:2: the key is empty"),
        ("x.jsonl", GOOD_LINE + b'{"key": "\\ud800", "value": "1"}\n', "x.jsonl:2: the key is not valid Unicode"),
        ("x.jsonl", GOOD_LINE + b'{"key": "k", "value": "\\ud800"}\n', "x.jsonl:2: the value is not valid Unicode"),
        ("x.jsonl", GOOD_LINE + b'{"key": "' + b"k" * 4097 + b'", "value": ""}\n', "x.jsonl:2: the key has 4097 bytes"),
        ("x.jsonl", GOOD_LINE + b"\xff\xfe\n", "x.jsonl:2: is not UTF-8"),
        ("x.jsonl", GOOD_LINE + b"[" * 100_000 + b"\n", "x.jsonl:2: is (nested too deeply|not JSON)"),
        ("x.csv", b"name,text\na,1\n", "x.csv:1: the first line must name"),
        ("x.csv", b"", "x.csv:1: the first line must name"),
        ("x.csv", b"key,value\na,1\nb\n", "x.csv:3: has 1 columns"),
        ("x.csv", b'key,value\na,"1\n', "x.csv:2: is not CSV"),
        ("x.csv", b"key,value\n,1\n", "x.csv:2: the key is empty"),
        ("x.txt", b"a=1\n", "x.txt: the name must end in"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=message) as raised:
        check_file(tmp_path / name)
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"none\.csv: cannot be read: No such file"):
        check_file(tmp_path / "none.csv")
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        check_file(tmp_path.rename(tmp_path.with_suffix(".csv")))


async def test_load_batches_within_its_bounds_and_reports_each_record_once() -> None:
    client = Recorder()
    records = list(first_records(unicode_records(), 103))
    told: list[Record] = []
    report = await load(client, records, batch=10, concurrency=3, acknowledged=told.extend)
    assert client.written == dict(records)
    assert sorted(told) == sorted(records)
    assert sorted(len(batch) for batch in client.batches) == [3, *[10] * 10]
    assert client.most_active == 3
    assert report.records == 103
    assert len(report.latencies_s) == 11


async def test_large_values_end_a_batch_early() -> None:
    client = Recorder()
    await load(client, [(f"k{number}", b"v" * (BATCH_BYTES // 2)) for number in range(5)], batch=100)
    assert sorted(len(batch) for batch in client.batches) == [1, 2, 2]


async def test_a_failing_batch_ends_the_load_and_is_not_acknowledged() -> None:
    client = Recorder(refuse="k5")
    told: list[Record] = []
    records = [(f"k{number}", b"v") for number in range(1_000)]
    with pytest.raises(DeadlineExceeded):
        await load(client, records, batch=5, concurrency=2, acknowledged=told.extend)
    assert dict(told) == client.written
    assert "k5" not in client.written
    assert len(told) < len(records)
    assert len(asyncio.all_tasks()) == 1


def test_report_quantiles() -> None:
    report = Report(records=100, elapsed_s=2.0, latencies_s=[number / 1_000 for number in range(100, 0, -1)])
    assert report.latency_ms(0.5) == pytest.approx(51)
    assert report.latency_ms(0.99) == pytest.approx(100)
    assert report.records_per_s == 50
    assert Report().latency_ms(0.5) == 0.0
