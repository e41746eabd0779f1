"""Holds the reports of `axismapper train` to a W&B service (wandb_stub.py) and to wandb's own `wandb sync`.

    python -m venv .venv && .venv/bin/pip install wandb==0.31.0
    .venv/bin/python tests/reference/wandb_check.py target/release/axismapper

Trains a tiny model online with faults of every kind, kills and resumes it, trains it offline, takes the service away in
the middle and at the end, sends what was left with `wandb sync`, and each time compares what the service has with
metrics.jsonl: every row once, in order, and nothing that the service calls an anomaly.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
KEY = "0123456789abcdef0123456789abcdef01234567"
SHAPE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "max_position_embeddings": 512, "vocab_size": 512,
}
STAGE = """
model: {name: base, load_in_4bit: true, dtype: float32, max_seq_length: 128}
lora: {r: 4, target_modules: all-linear, use_dora: true}
training: {max_steps: 60, per_device_train_batch_size: 2, learning_rate: 1e-3, optim: adamw_torch, eval_strategy: steps,
  eval_steps: 10, save_steps: 5, logging_steps: 1, report_to: wandb}
data: {train: train.jsonl, validation: train.jsonl}
"""


class Stub:
    """The service as a process."""

    def __init__(self, place, *faults):
        self.port_file = place / "port"
        self.port_file.unlink(missing_ok=True)
        args = ["--port-file", self.port_file, "--out", place / "state.json", "--api-key", KEY, *faults]
        self.process = subprocess.Popen([sys.executable, HERE / "wandb_stub.py", *map(str, args)], stdout=subprocess.DEVNULL)
        while not (self.port_file.exists() and self.port_file.read_text()):
            time.sleep(0.02)
        self.url = f"http://127.0.0.1:{self.port_file.read_text()}"

    def control(self, what, **body):
        urllib.request.urlopen(f"{self.url}/__stub/{what}", json.dumps(body).encode()).read()

    def state(self):
        return json.load(urllib.request.urlopen(f"{self.url}/__stub/state"))

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Place:
    def __init__(self, binary, root, name):
        self.binary, self.dir = binary, root / name
        self.dir.mkdir()
        for shared in ("base", "train.jsonl", "stage.yaml"):
            (self.dir / shared).symlink_to(root / shared)

    def start(self, url, *args, **env):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        env = {**kept, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url, "WANDB_PROJECT": "proj", "WANDB_TAGS": "a,b", **env}
        command = [self.binary, "train", "--config", "stage.yaml", *args]
        return subprocess.Popen(command, cwd=self.dir, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def train(self, url, *args, code=0, **env):
        child = self.start(url, *args, **env)
        said = child.communicate()[1]
        assert child.returncode == code, said
        assert KEY not in said
        return said

    def wait_beyond(self, child, step):
        out = self.dir / "out" / "stage"
        while child.poll() is None and max([int(p.name[11:]) for p in out.glob("checkpoint-*")], default=0) < step:
            time.sleep(0.01)

    def logged(self):
        return [json.loads(line) for line in (self.dir / "out/stage/metrics.jsonl").read_text().splitlines()]

    def folders(self):
        return sorted(p for p in (self.dir / "wandb").glob("*-run-*") if not list(p.glob("*.synced")))

    def sync(self, url):
        env = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": url}
        for folder in self.folders():
            done = subprocess.run([sys.executable, "-m", "wandb", "sync", str(folder)], cwd=self.dir, env=env, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


def check(place, stub, exit_code=0):
    """The service has the run, whole."""
    state = stub.state()
    # The Python client also sends figures about itself, to a place that the stub does not know.
    unknown = [query for query in state["unknown_queries"] if not query.get("path", "").startswith("/sdk/otel")]
    assert not unknown, unknown
    (run,) = state["runs"].values()
    assert not run["anomalies"], run["anomalies"]
    rows, expected = run["history"], place.logged()
    steps = [row["train/global_step"] for row in rows]
    assert steps == [row["step"] for row in expected], (steps, [row["step"] for row in expected])
    for idx, (row, logged) in enumerate(zip(rows, expected)):
        assert row["_step"] == idx
        assert row.get("train/loss") == logged.get("loss") or abs(row["train/loss"] - logged["loss"]) < 1e-12, (row, logged)
        assert row.get("eval/loss") == logged.get("eval_loss"), (row, logged)
    assert run["exitcode"] == exit_code and run["complete"], (run["exitcode"], run["state"])
    assert run["config"]["lora"]["r"] == 4 and run["tags"] == ["a", "b"], run["config"]
    assert run["summary"]["train/global_step"] == expected[-1]["step"], run["summary"]
    assert run["events"] and all("system.memory_percent" in event for event in run["events"])
    assert any("step 60:" in line for line in run["output_log"]), run["output_log"][-3:]
    return run


FAULTS = {
    "no faults": [],
    "500 to the first four": ["--fail-first", "4"],
    "429 with Retry-After": ["--fail-first", "3", "--fail-code", "429", "--retry-after", "1"],
    "every third fails": ["--fail-every", "3"],
    "every second post fails": ["--fail-every", "2", "--match", "file_stream"],
    "not handled, no answer": ["--drop", "4", "--drop-when", "before"],
    "handled, no answer": ["--drop", "4", "--drop-when", "after"],
    "half an answer": ["--drop", "4", "--drop-when", "mid"],
    "posts handled, no answer": ["--drop", "3", "--drop-when", "after", "--match", "file_stream"],
    "slow": ["--delay", "0.7"],
    "rate limit": ["--rate-limit", "1,1"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=lambda path: pathlib.Path(path).resolve())
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        root = pathlib.Path(root)
        draw = random.Random(1)
        record = lambda: {"messages": [{"role": "user", "content": f"fell on leg {draw.randrange(99)}"}, {"role": "assistant", "content": "S82.201A"}]}
        (root / "train.jsonl").write_text("".join(json.dumps(record()) + "\n" for _ in range(40)))
        (root / "stage.yaml").write_text(STAGE)
        (root / "shape.json").write_text(json.dumps(SHAPE))
        subprocess.run([args.binary, "init", "--config", "shape.json", "--corpus", "train.jsonl", "--out", "base"], cwd=root, check=True)
        for idx, (name, test) in enumerate(tests().items()):
            if args.only in name:
                started = time.time()
                test(Place(args.binary, root, f"place{idx}"))
                print(f"{name}: good ({time.time() - started:.0f} s)", flush=True)


def tests():
    found = {}
    for name, faults in FAULTS.items():
        def online(place, faults=faults):
            stub = Stub(place.dir, *faults)
            place.train(stub.url)
            run = check(place, stub)
            assert run["files"]["wandb-metadata.json"]["sent_authorization"] is False
            assert not place.folders(), place.folders()
            stub.stop()
        found[f"online, {name}"] = online

    def killed(place):
        stub = Stub(place.dir, "--fail-every", "4")
        for step in (10, 25, 40):
            child = place.start(stub.url, "--resume")
            place.wait_beyond(child, step)
            child.kill()
            child.wait()
        place.train(stub.url, "--resume")
        check(place, stub)
        stub.stop()

    def stopped(place):
        stub = Stub(place.dir)
        child = place.start(stub.url)
        place.wait_beyond(child, 20)
        child.send_signal(signal.SIGTERM)
        child.wait()
        (run,) = stub.state()["runs"].values()
        assert (run["exitcode"], run["state"]) == (1, "failed"), run["state"]
        place.train(stub.url, "--resume")
        assert check(place, stub)["resumes"] == 1
        stub.stop()

    def offline(place):
        said = place.train("http://127.0.0.1:9", WANDB_MODE="offline")
        assert "wandb sync" in said, said
        stub = Stub(place.dir)
        place.sync(stub.url)
        check(place, stub)
        stub.stop()

    def offline_killed(place):
        for step in (10, 30):
            child = place.start("http://127.0.0.1:9", "--resume", WANDB_MODE="offline")
            place.wait_beyond(child, step)
            child.kill()
            child.wait()
            time.sleep(1)
        place.train("http://127.0.0.1:9", "--resume", WANDB_MODE="offline")
        assert len(place.folders()) == 3
        stub = Stub(place.dir)
        place.sync(stub.url)
        check(place, stub)
        stub.stop()

    def away(place):
        said = place.train("http://127.0.0.1:9")
        assert said.count("figures are recorded in") == 1 and "wandb sync" in said, said
        stub = Stub(place.dir)
        place.sync(stub.url)
        check(place, stub)
        stub.stop()

    def goes_away(place):
        stub = Stub(place.dir)
        child = place.start(stub.url)
        place.wait_beyond(child, 10)
        stub.control("faults", fail_first=10**6, fail_code=503)
        said = child.communicate()[1]
        assert child.returncode == 0 and "wandb sync" in said, said
        stub.control("faults")
        place.sync(stub.url)
        check(place, stub)
        stub.stop()

    def killed_while_away(place):
        stub = Stub(place.dir, "--fail-first", str(10**6))
        child = place.start(stub.url)
        place.wait_beyond(child, 30)
        child.kill()
        child.wait()
        stub.control("faults")
        place.train(stub.url, "--resume")
        check(place, stub)
        assert not place.folders(), place.folders()
        stub.stop()

    found.update({
        "killed three times and resumed": killed, "stopped by SIGTERM and resumed": stopped,
        "offline, then wandb sync": offline, "offline, killed twice, then wandb sync": offline_killed,
        "service away, then wandb sync": away, "service goes away, then wandb sync": goes_away,
        "killed while the service is away, resumed": killed_while_away,
    })
    return found


if __name__ == "__main__":
    main()
