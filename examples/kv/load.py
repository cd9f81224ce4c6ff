"""Bulk loading: records from a file, or the names of Unicode's characters, written in batches over HTTP.

A file is read twice: first to check every line, then to load. A file with a mistake in its last line therefore
changes nothing in the store.

Rules of this file: at most `concurrency` batches are on their way; a record counts as acknowledged when its batch
was, and is reported to the caller then, once.
"""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from examples.kv.client import Client
from examples.kv.machine import VALUE_LIMIT_BYTES, check_key, check_value

Record: TypeAlias = tuple[str, bytes]
Acknowledged: TypeAlias = Callable[[list[Record]], None]

BATCH_BYTES: Final = 1024 * 1024
"""A batch is sent when its values come to this, however few they are."""
_BULK_NAMES: Final = ("CJK UNIFIED IDEOGRAPH-", "HANGUL SYLLABLE ")
_CODE_POINTS: Final = 0x110000


class LoadError(ValueError):
    """A source cannot be loaded; the message names file and line."""


@dataclass(slots=True)
class Report:
    """What a load came to.

    records      acknowledged
    elapsed_s    from the first batch to the last answer
    latencies_s  of each batch, all its attempts together
    """

    records: int = 0
    elapsed_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    @property
    def records_per_s(self) -> float:
        return self.records / self.elapsed_s if self.elapsed_s else 0.0

    def latency_ms(self, quantile: float) -> float:
        """Return the latency that this share of the batches (0 to 1) stayed within, in milliseconds."""
        if not self.latencies_s:
            return 0.0
        ranked = sorted(self.latencies_s)
        return 1_000 * ranked[min(len(ranked) - 1, int(quantile * len(ranked)))]


def unicode_records(everything: bool = False) -> Iterator[Record]:
    """Yield ("U+0041", b"LATIN CAPITAL LETTER A") and so on, for every named code point.

    everything  also the CJK ideographs and Hangul syllables, whose names say no more than their number
    """
    for code_point in range(_CODE_POINTS):
        name = unicodedata.name(chr(code_point), "")
        if name and (everything or not name.startswith(_BULK_NAMES)):
            yield f"U+{code_point:04X}", name.encode()


def file_records(path: Path) -> Iterator[Record]:
    """Yield the records of a JSON lines file (.jsonl, .ndjson, .json) or a CSV file (.csv).

    JSON lines: {"key": "...", "value": "..."} on each line. CSV: a header that names the columns `key` and `value`.
    Values are text and are stored as UTF-8. Raises LoadError, naming file and line.
    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".ndjson", ".json", ".csv"):
        raise LoadError(f"{path}: the name must end in .jsonl, .ndjson, .json or .csv, to say what is in it")
    try:
        with open(path, "rb") as file:
            lines = _text_lines(path, file)
            yield from _csv_records(path, lines) if suffix == ".csv" else _json_records(path, lines)
    except OSError as problem:
        raise LoadError(f"{path}: cannot be read: {problem.strerror}") from None


def check_file(path: Path) -> int:
    """Return the number of records in a file, having read all of it. Raises LoadError."""
    return sum(1 for _ in file_records(path))


async def load(
    client: Client,
    records: Iterable[Record],
    *,
    batch: int = 100,
    concurrency: int = 16,
    acknowledged: Acknowledged = lambda records: None,
) -> Report:
    """Write all records and return once every one is acknowledged.

    batch         records per request
    concurrency   requests on their way at once
    acknowledged  told of each batch when it is

    Raises what `Client.batch` raises; what was acknowledged before stays written.
    """
    report = Report()
    source = _batches(records, batch)
    started = time.perf_counter()

    async def work() -> None:
        for piece in source:
            sent = time.perf_counter()
            await client.batch(dict(piece))
            report.latencies_s.append(time.perf_counter() - sent)
            report.records += len(piece)
            acknowledged(piece)

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        report.elapsed_s = time.perf_counter() - started
    return report


def _batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    piece: list[Record] = []
    size_bytes = 0
    for record in records:
        piece.append(record)
        size_bytes += len(record[1])
        if len(piece) >= size or size_bytes >= BATCH_BYTES:
            yield piece
            piece, size_bytes = [], 0
    if piece:
        yield piece


def _text_lines(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise LoadError(f"{path}:{number}: is not UTF-8 text") from None


def _json_records(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as problem:
            raise LoadError(f"{path}:{number}: is not JSON: {problem}") from None
        except RecursionError:
            raise LoadError(f"{path}:{number}: is nested too deeply") from None
        if not isinstance(found, dict) or set(found) != {"key", "value"}:
            raise LoadError(f'{path}:{number}: must be an object {{"key": "...", "value": "..."}} and nothing else')
        yield _record(path, number, found["key"], found["value"])


def _csv_records(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    csv.field_size_limit(4 * VALUE_LIMIT_BYTES)
    reader = csv.reader(lines, strict=True)
    try:
        header = next(reader, [])
        if sorted(header) != ["key", "value"]:
            raise LoadError(f"{path}:1: the first line must name the columns: key,value")
        key_at, value_at = header.index("key"), header.index("value")
        for row in reader:
            if not row:
                continue
            if len(row) != 2:
                raise LoadError(f"{path}:{reader.line_num}: has {len(row)} columns instead of 2")
            yield _record(path, reader.line_num, row[key_at], row[value_at])
    except csv.Error as problem:
        raise LoadError(f"{path}:{reader.line_num}: is not CSV: {problem}") from None


def _record(path: Path, number: int, key: Any, value: Any) -> Record:
    if not isinstance(key, str) or not isinstance(value, str):
        raise LoadError(f"{path}:{number}: key and value must be text")
    try:
        content = value.encode()
        check_key(key)
        check_value(content)
    except UnicodeEncodeError:
        raise LoadError(f"{path}:{number}: the value is not valid Unicode text") from None
    except ValueError as problem:
        raise LoadError(f"{path}:{number}: {problem}") from None
    return key, content


def first_records(records: Iterable[Record], count: int | None) -> Iterator[Record]:
    """Yield the first `count` records; all of them when it is None."""
    return itertools.islice(records, count)
