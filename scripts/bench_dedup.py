"""De-duplication by datasketch, rensa and axismapper on the same records: time, and pairs found, side by side.

usage: bench_dedup.py AXISMAPPER RECORDS.jsonl   (pip install datasketch rensa)

All three follow one protocol: records in order of falling number of codes; a record is a duplicate when an earlier
record that is none has a Jaccard similarity of at least 0.8 of the sets of 5-grams of characters; candidates come from
MinHash-LSH with 128 permutations, and each is verified exactly. The exact answer, from an inverted index over all
grams, says how many duplicates there are to find.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

THRESHOLD, GRAM, PERMUTATIONS = 0.8, 5, 128


def normal(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def grams(text: str) -> frozenset[str]:
    text = normal(text)
    return frozenset(text[i : i + GRAM] for i in range(len(text) - GRAM + 1)) or frozenset([text])


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    both = len(a & b)
    return both / (len(a) + len(b) - both)


def by_lsh(sets: list[frozenset[str]], sketch, lsh) -> set[int]:
    """The duplicates that `lsh` finds: every candidate is verified."""
    found = set()
    for number, grams_of_it in enumerate(sets):
        minhash = sketch(grams_of_it)
        if any(jaccard(grams_of_it, sets[other]) >= THRESHOLD for other in lsh.query(minhash)):
            found.add(number)
        else:
            lsh.insert(number, minhash)
    return found


def with_datasketch(sets: list[frozenset[str]]) -> set[int]:
    from datasketch import MinHash, MinHashLSH

    def sketch(items: frozenset[str]) -> MinHash:
        minhash = MinHash(num_perm=PERMUTATIONS)
        minhash.update_batch([item.encode() for item in items])
        return minhash

    return by_lsh(sets, sketch, MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS))


def with_rensa(sets: list[frozenset[str]]) -> set[int]:
    from rensa import RMinHash, RMinHashLSH

    def sketch(items: frozenset[str]) -> RMinHash:
        minhash = RMinHash(num_perm=PERMUTATIONS, seed=42)
        minhash.update(list(items))
        return minhash

    return by_lsh(sets, sketch, RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=16))


def exact(sets: list[frozenset[str]]) -> set[int]:
    """Every duplicate: kept records that share a gram are compared, rare grams first (prefix filter)."""
    frequency = Counter(gram for items in sets for gram in items)
    index: dict[str, list[int]] = defaultdict(list)
    found = set()
    for number, items in enumerate(sets):
        ordered = sorted(items, key=lambda gram: (frequency[gram], gram))
        prefix = ordered[: len(ordered) - int(THRESHOLD * len(ordered)) + 1]
        candidates = {other for gram in prefix for other in index[gram]}
        if any(jaccard(items, sets[other]) >= THRESHOLD for other in candidates):
            found.add(number)
        else:
            for gram in prefix:
                index[gram].append(number)
    return found


def measured(work) -> tuple[set[int], float, float]:
    """What `work` finds, its seconds by the clock, and those of the processor, child processes included."""
    spent = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    clock, processor = time.perf_counter(), spent()
    found = work()
    return found, time.perf_counter() - clock, spent() - processor


def with_axismapper(program: str, records: list[dict]) -> set[int]:
    with tempfile.TemporaryDirectory() as folder:
        source, rejected = Path(folder) / "in.jsonl", Path(folder) / "rejected.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        command = [program, "-q", "data", "dedup", "--in", source, "--out", Path(folder) / "out.jsonl"]
        subprocess.run([*command, "--rejected", rejected], check=True, stdout=subprocess.DEVNULL)
        return {json.loads(line)["line"] - 1 for line in rejected.open()}


def main() -> None:
    program, path = sys.argv[1:]
    records = [json.loads(line) for line in open(path)]
    records.sort(key=lambda record: -len(record["codes"]))
    texts = [record["scenario"] for record in records]
    sets = [grams(text) for text in texts]
    truth = exact(sets)
    print(f"{len(records)} records, {len(truth)} duplicates to find")
    print("| program | seconds | processor seconds | duplicates found | of all | wrong |\n| --- | --- | --- | --- | --- | --- |")
    for name, work in [
        ("axismapper, files written and read", lambda: with_axismapper(program, records)),
        ("datasketch", lambda: with_datasketch([grams(text) for text in texts])),
        ("rensa", lambda: with_rensa([grams(text) for text in texts])),
    ]:
        found, seconds, spent = measured(work)
        share = 100 * len(found & truth) / max(len(truth), 1)
        print(f"| {name} | {seconds:.1f} | {spent:.1f} | {len(found)} | {share:.1f} % | {len(found - truth)} |", flush=True)


if __name__ == "__main__":
    main()
