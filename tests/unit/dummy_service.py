"""A process to supervise: `python dummy_service.py READY_FILE [--option ...]`."""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("ready_file", type=Path)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--fail", action="store_true", help="end before being ready")
parser.add_argument("--fail-after-first", type=Path, help="ends at once from the second start on")
parser.add_argument("--never-ready", action="store_true")
parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
parser.add_argument("--descendant", action="store_true", help="start a process of its own")
parser.add_argument("--journal", type=Path, help="file that gets a line at the end")
parser.add_argument("--name", default="dummy")
options = parser.parse_args()

print("dummy begins", flush=True)
if options.fail:
    print("no such model: tiny", file=sys.stderr, flush=True)
    sys.exit(3)
if options.fail_after_first is not None:
    if options.fail_after_first.exists():
        sys.exit(4)
    options.fail_after_first.touch()


def end(*_: object) -> None:
    if options.journal is not None:
        with options.journal.open("a") as journal:
            journal.write(f"{options.name}\n")
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if options.stubborn else end)
descendant = 0
if options.descendant:
    descendant = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid
listener = socket.create_server(("127.0.0.1", options.port))
if not options.never_ready:
    report = {"pid": os.getpid(), "port": listener.getsockname()[1], "descendant": descendant}
    unfinished = options.ready_file.with_suffix(".new")
    unfinished.write_text(json.dumps(report))
    unfinished.rename(options.ready_file)
while True:
    time.sleep(60)
