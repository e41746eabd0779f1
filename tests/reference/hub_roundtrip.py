"""Pushes and pulls against a Hub with faults, with the reference client on the other side; compares byte for byte.

    .venv/bin/python tests/reference/hub_roundtrip.py target/debug/axismapper

Needs huggingface_hub and hf_xet. The Hub is `hub_stub.py` beside this file; nothing leaves the machine.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
TOKEN = "hf_alice_write"


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """SHA-256 of every file that is no bookkeeping of a client."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"
    }


class Hub:
    def __init__(self, folder: pathlib.Path):
        port_file = folder / "port"
        self.process = subprocess.Popen(
            [sys.executable, HERE / "hub_stub.py", "--store", folder / "store", "--port-file", port_file],
            stdout=subprocess.DEVNULL,
        )
        while not port_file.exists() or not port_file.read_text():
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{port_file.read_text()}"

    def ask(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data=data)) as answer:
            return json.load(answer)

    def faults(self, **faults) -> None:
        self.ask("/__stub/faults", faults)

    def state(self) -> dict:
        return self.ask("/__stub/state")


def main() -> None:
    program = pathlib.Path(sys.argv[1]).resolve()
    work = pathlib.Path(tempfile.mkdtemp(prefix="hub-roundtrip-"))
    hub = Hub(work)
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(work / "ours"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    for name in list(environment):
        if name.lower().endswith("_proxy") or name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            del environment[name]

    def run(*arguments: str, home: str = "ours") -> str:
        return subprocess.run(
            [program, *arguments], env={**environment, "HF_HOME": str(work / home)}, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    def python(code: str, home: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", "from huggingface_hub import snapshot_download\n" + code],
            env={**environment, "HF_HOME": str(work / home)}, check=True, stdout=subprocess.PIPE, text=True,
        ).stdout.strip()

    try:
        adapter, model = work / "adapter", work / "model"
        shutil.copytree(FIXTURES / "adapters" / "lora", adapter)
        shutil.copytree(FIXTURES / "tiny" / "tied", model)
        draw = random.Random(7)
        # Two large files beside the weights: a commit each.
        for name, size in (("model-a.safetensors", 13_000_003), ("model-b.safetensors", 25_000_001)):
            (model / name).write_bytes((2).to_bytes(8, "little") + b"{}" + draw.randbytes(size))
        for kind, folder in (("adapter", adapter), ("model", model)):
            repo = f"acme/{kind}"
            push = ("push", "--repo", repo, "--dir", str(folder), "--base-model", "Qwen/Qwen2.5-0.5B")
            for faults in (
                # The first round sends the weights.
                {"cut_upload": 1},
                {"fail_first": 3, "fail_code": 503},
                {"fail_first": 1, "fail_code": 429, "retry_after": 1, "match": "/preupload/"},
                {"drop": 1, "drop_when": "after", "match": "/commit/"},
            ):
                hub.faults(**faults)
                (folder / "round.txt").write_text(json.dumps(faults))
                run(*push)
                hub.faults()
            commits = len(hub.state()["repos"][f"models/{repo}"]["commits"])
            # The initial one, then one for each round, and one more for each large file.
            expected = 1 + 4 + (2 if kind == "model" else 0)
            assert commits == expected, f"{repo}: {commits} commits, expected {expected}"
            assert "nothing to do" in run(*push)
            assert hub.state()["repos"][f"models/{repo}"]["private"]

            theirs = pathlib.Path(python(f"print(snapshot_download({repo!r}))", "theirs"))
            want = hashes(folder)
            got = hashes(theirs)
            made = {name: got.pop(name) for name in ("README.md", "icd10cm.regex")}
            assert got == want, f"{repo}: the reference client got other files"

            hub.faults(cut_download=2)
            out = work / f"pulled-{kind}"
            run("pull", repo, "--out", str(out))
            hub.faults()
            assert hashes(out) == {**want, **made}, f"{repo}: pull got other files"

            # One cache for both: what one fetched the other takes.
            before = sum("/resolve/" in request["path"] for request in hub.state()["requests"])
            run("pull", repo, home="theirs")
            after = sum("/resolve/" in request["path"] for request in hub.state()["requests"])
            assert before == after, f"{repo}: fetched again what the reference client had fetched"
            path = python(f"print(snapshot_download({repo!r}, local_files_only=True))", "ours")
            assert hashes(pathlib.Path(path)) == {**want, **made}
            print(f"{repo}: {len(want)} files, {commits} commits, the same on both sides")
        unknown = hub.state()["unknown"]
        assert not unknown, unknown
        secrets = [path for path in (work / "store" / "checkout").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
        assert not secrets, secrets
        print(f"{len(hub.state()['faults_served'])} faults served")
    finally:
        hub.process.terminate()
        hub.process.wait()
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
