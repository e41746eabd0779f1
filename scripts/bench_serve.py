#!/usr/bin/env python3
"""Load test of `axismapper serve` on loopback, with Python's standard library only.

    axismapper serve --model MODEL --port 8000 --max-waiting 64 &
    python3 scripts/bench_serve.py --url http://127.0.0.1:8000 --questions test.jsonl

Three parts: throughput and latency with 1, 2, 4, ... requests under way (a new one is sent when one is answered); the
same answers whatever else is under way; and requests that arrive at twice the best throughput, of which the queue has to
turn some away. Questions are chat records or lines of text.
"""

import argparse
import http.client
import json
import queue
import threading
import time
import urllib.parse


def read_questions(path):
    texts = []
    for line in open(path, encoding="utf-8"):
        line = line.strip()
        if line.startswith("{"):
            record = json.loads(line)
            turns = record.get("messages", [])
            text = record.get("scenario") or next(turn["content"] for turn in turns if turn["role"] == "user")
        else:
            text = line
        if text:
            texts.append(text)
    return texts


class Client:
    """One connection, as a client that stays."""

    def __init__(self, url, model):
        self.address, self.model, self.connection = urllib.parse.urlsplit(url).netloc, model, None

    def ask(self, text):
        """Status, answer, tokens."""
        body = {"messages": [{"role": "user", "content": text}]} | ({"model": self.model} if self.model else {})
        for is_last in (False, True):
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection(self.address, timeout=600)
                headers = {"Content-Type": "application/json"}
                self.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
                response = self.connection.getresponse()
                value = json.loads(response.read())
                break
            except (http.client.HTTPException, OSError):
                self.connection = None
                if is_last:
                    raise
        if response.status != 200:
            return response.status, None, 0
        return 200, value["choices"][0]["message"]["content"], value["usage"]["completion_tokens"]


def closed_loop(url, model, texts, n_clients):
    """Every text once, `n_clients` at a time: seconds in all, and (latency, answer, tokens) by text."""
    todo, results = queue.SimpleQueue(), [None] * len(texts)
    for item in enumerate(texts):
        todo.put(item)

    def work():
        client = Client(url, model)
        while True:
            try:
                idx, text = todo.get_nowait()
            except queue.Empty:
                return
            started = time.perf_counter()
            status, answer, n_tokens = client.ask(text)
            assert status == 200, f"a request was answered with {status}"
            results[idx] = (time.perf_counter() - started, answer, n_tokens)

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(n_clients)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return time.perf_counter() - started, results


def open_loop(url, model, texts, rate, seconds):
    """Requests at a steady rate, answered or not: (status, latency) of each."""
    outcomes, lock, threads = [], threading.Lock(), []

    def work(text):
        started = time.perf_counter()
        status, _, _ = Client(url, model).ask(text)
        with lock:
            outcomes.append((status, time.perf_counter() - started))

    started = time.perf_counter()
    n = int(rate * seconds)
    for idx in range(n):
        time.sleep(max(0.0, started + idx / rate - time.perf_counter()))
        threads.append(threading.Thread(target=work, args=(texts[idx % len(texts)],)))
        threads[-1].start()
    [thread.join() for thread in threads]
    return time.perf_counter() - started, outcomes


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="the model's name; the server's first when left out")
    parser.add_argument("--questions", required=True)
    parser.add_argument("--n", type=int, default=256, help="requests in each round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--overload-seconds", type=float, default=20)
    args = parser.parse_args()
    texts = read_questions(args.questions)
    texts = (texts * (args.n // len(texts) + 1))[: args.n]

    closed_loop(args.url, args.model, texts[:8], 4)  # warms up
    alone, best = None, 0.0
    print(f"{'clients':>8} {'requests/s':>11} {'tokens/s':>9} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8} {'as alone':>9}")
    for n_clients in args.clients:
        part = texts if n_clients >= 4 else texts[: max(32, args.n // 4)]
        seconds, results = closed_loop(args.url, args.model, part, n_clients)
        answers = [answer for _, answer, _ in results]
        if alone is None:
            _, results_alone = (seconds, results) if len(part) == len(texts) else closed_loop(args.url, args.model, texts, 1)
            alone = [answer for _, answer, _ in results_alone]
        n_same = sum(a == b for a, b in zip(answers, alone))
        latencies = [1000 * latency for latency, _, _ in results]
        rate, n_tokens = len(part) / seconds, sum(n for _, _, n in results)
        best = max(best, rate)
        p50, p95, p99 = (percentile(latencies, share) for share in (0.5, 0.95, 0.99))
        same = f"{n_same}/{len(part)}"
        print(f"{n_clients:>8} {rate:>11.1f} {n_tokens / seconds:>9.0f} {p50:>8.0f} {p95:>8.0f} {p99:>8.0f} {same:>9}", flush=True)

    rate = 2 * best
    seconds, outcomes = open_loop(args.url, args.model, texts, rate, args.overload_seconds)
    ok = [1000 * latency for status, latency in outcomes if status == 200]
    turned = [1000 * latency for status, latency in outcomes if status == 429]
    others = len(outcomes) - len(ok) - len(turned)
    print(f"\n{rate:.1f} requests/s for {args.overload_seconds:.0f} s: {len(ok)} answered ({len(ok) / seconds:.1f}/s),"
          f" {len(turned)} turned away with 429, {others} other outcomes")
    print(f"answered: p50 {percentile(ok, 0.5):.0f} ms, p95 {percentile(ok, 0.95):.0f} ms, p99 {percentile(ok, 0.99):.0f} ms")
    if turned:
        print(f"turned away within p50 {percentile(turned, 0.5):.0f} ms, p99 {percentile(turned, 0.99):.0f} ms")


if __name__ == "__main__":
    main()
