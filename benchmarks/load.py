"""Load on a model behind any KServe v2 endpoint over HTTP (Triton, KServe): latency, throughput, errors.

    python benchmarks/load.py MODEL [--url http://127.0.0.1:8000] [--images FOLDER] [--clients 1 8 32] [--rates 20 50]
                              [--seconds 10] [--warm-up 2] [--outputs NAME ...] [--header 'Host: NAME'] [--json FILE]

Closed loop (``--clients N``): N clients, each of which asks again as soon as it has its answer: what the server can do.
Open loop (``--rates R``): R requests per second on average, at random (Poisson) times, whether or not earlier ones have
been answered: what users feel. There, latency counts from the moment at which a request was due, so that a server that
falls behind shows (in a closed loop it slows its clients down, and hides).

The model's metadata define its input. A BYTES input gets the images of a folder (by default a photo that matplotlib
brings), a numeric one random numbers. Bodies are v2's JSON with binary tensors. One Python process sends the requests,
about a thousand per second at most. Needs numpy and urllib3, and nothing of this project. The exit status is 1 if a
request was not answered with 200.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import urllib3

DTYPES = {"FP16": "e", "FP32": "f", "FP64": "d", "UINT8": "B", "INT8": "b", "INT32": "i", "INT64": "q"}
IN_FLIGHT = 128  # connections of an open loop; what is due beyond that waits, and its waiting is counted


@dataclass
class Result:
    """A run of one load. Latencies are in milliseconds, of requests that were answered with 200."""

    load: str
    answered: int
    errors: dict[str, int]
    seconds: float
    per_second: float
    p50: float = field(default=float("nan"))
    p90: float = field(default=float("nan"))
    p99: float = field(default=float("nan"))
    worst: float = field(default=float("nan"))


class Endpoint:
    """A model at a URL, and the requests that it is sent."""

    def __init__(self, url: str, model: str, headers: dict[str, str], connections: int) -> None:
        self._pool = urllib3.PoolManager(maxsize=connections, block=False, retries=False, headers=headers, timeout=60)
        self._model = f"{url.rstrip('/')}/v2/models/{model}"
        self._headers = headers

    def metadata(self) -> dict[str, Any]:
        answer = self._pool.request("GET", self._model)
        if answer.status != 200:
            raise SystemExit(f"{self._model}: HTTP {answer.status}: {answer.data[:300].decode(errors='replace')}")
        return answer.json()

    def body(self, spec: dict[str, Any], value: bytes | np.ndarray, outputs: list[str]) -> tuple[dict[str, str], bytes]:
        """Headers and body of a request with one input: JSON, then the tensor's bytes."""
        if isinstance(value, bytes):
            data, shape = len(value).to_bytes(4, "little") + value, [1] * len(spec["shape"])
        else:
            data, shape = value.tobytes(), list(value.shape)
        tensor = {"name": spec["name"], "datatype": spec["datatype"], "shape": shape}
        request: dict[str, Any] = {"inputs": [tensor | {"parameters": {"binary_data_size": len(data)}}]}
        binary = {"binary_data": True}
        if outputs:
            request["outputs"] = [{"name": name, "parameters": binary} for name in outputs]
        else:
            request["parameters"] = {"binary_data_output": True}
        head = json.dumps(request).encode()
        return self._headers | {"Inference-Header-Content-Length": str(len(head))}, head + data

    def ask(self, request: tuple[dict[str, str], bytes]) -> str | None:
        """Send a request. Returns the error, or None."""
        headers, body = request
        try:
            answer = self._pool.request("POST", f"{self._model}/infer", body=body, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            return type(error).__name__
        return None if answer.status == 200 else f"HTTP {answer.status}: {answer.data[:200].decode(errors='replace')}"


def requests_for(endpoint: Endpoint, images: Path | None, outputs: list[str]) -> list[tuple[dict[str, str], bytes]]:
    """The requests that are sent repeatedly."""
    inputs = endpoint.metadata()["inputs"]
    if len(inputs) != 1:
        raise SystemExit(f"The model has {len(inputs)} inputs; this script supports models with one.")
    spec = inputs[0]
    if spec["datatype"] == "BYTES":
        if images is None:
            import matplotlib

            images = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
        files = [images] if images.is_file() else sorted(file for file in images.iterdir() if file.is_file())
        if not files:
            raise SystemExit(f"No images in {images}.")
        return [endpoint.body(spec, file.read_bytes(), outputs) for file in files]
    if spec["datatype"] not in DTYPES:
        raise SystemExit(f"The model takes {spec['datatype']}; this script supports BYTES, {', '.join(DTYPES)}.")
    shape = [max(1, int(size)) for size in spec["shape"]]
    values = np.random.default_rng(0).integers(0, 128, (4, *shape)).astype(DTYPES[spec["datatype"]])
    return [endpoint.body(spec, value, outputs) for value in values]


def run(
    load: str, endpoint: Endpoint, requests: list[Any], threads: int, due: Iterator[float], warm_up: float, end: float
) -> Result:
    """Send requests at their due times (0: immediately) until ``end``; count only those due after ``warm_up``."""
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    numbers = itertools.count()
    guard = threading.Lock()
    last = [warm_up]

    def client() -> None:
        while True:
            with guard:
                at, number = next(due), next(numbers)
            start = at or time.perf_counter()
            if start >= end:
                return
            time.sleep(max(0.0, start - time.perf_counter()))
            wrong = endpoint.ask(requests[number % len(requests)])
            done = time.perf_counter()
            if start >= warm_up:
                with guard:
                    last[0] = max(last[0], done)
                    if wrong:
                        errors[wrong] += 1
                    else:
                        latencies.append(1000 * (done - start))

    workers = [threading.Thread(target=client, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = last[0] - warm_up
    result = Result(load, len(latencies), dict(errors), seconds, len(latencies) / seconds if seconds else 0.0)
    if latencies:
        result.p50, result.p90, result.p99, result.worst = np.percentile(latencies, [50, 90, 99, 100]).tolist()
    return result


def closed_loop(endpoint: Endpoint, requests: list[Any], clients: int, seconds: float, warm_up: float) -> Result:
    begin = time.perf_counter() + warm_up
    due = itertools.repeat(0.0)
    return run(f"{clients} clients", endpoint, requests, clients, due, begin, begin + seconds)


def open_loop(endpoint: Endpoint, requests: list[Any], rate: float, seconds: float, warm_up: float) -> Result:
    begin = time.perf_counter() + warm_up
    gaps = np.random.default_rng(0).exponential(1 / rate, size=int(2 * rate * (seconds + warm_up)) + 100)
    due = itertools.chain((begin - warm_up + np.cumsum(gaps)).tolist(), itertools.repeat(float("inf")))
    return run(f"{rate:g} per second", endpoint, requests, IN_FLIGHT, due, begin, begin + seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="name of the model on the server")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of images to send (default: a photo of matplotlib)")
    parser.add_argument("--clients", type=int, nargs="*", default=[], help="numbers of clients of the closed loop")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="requests per second of the open loop")
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement (default: %(default)s)")
    parser.add_argument(
        "--warm-up", type=float, default=2, help="seconds before each measurement (default: %(default)s)"
    )
    parser.add_argument("--outputs", nargs="*", default=[], help="outputs to ask for (default: all)")
    parser.add_argument(
        "--header", action="append", default=[], metavar="'NAME: VALUE'", help="HTTP header to send; repeat for several"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    arguments = parser.parse_args()
    clients = arguments.clients or ([] if arguments.rates else [1, 8, 32])
    headers = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in arguments.header)}
    endpoint = Endpoint(arguments.url, arguments.model, headers, max([IN_FLIGHT, *clients]))
    requests = requests_for(endpoint, arguments.images, arguments.outputs)
    how = {"seconds": arguments.seconds, "warm_up": arguments.warm_up}

    print(f"{arguments.model} at {arguments.url}, {len(requests)} different requests")
    print(
        "\n| load | answered | errors | per second | p50, ms | p90 | p99 | worst |\n|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    results = []
    loads = [(closed_loop, number) for number in clients] + [(open_loop, rate) for rate in arguments.rates]
    for loop, number in loads:
        r = loop(endpoint, requests, number, **how)
        results.append(r)
        times = " | ".join(f"{value:.1f}" for value in (r.p50, r.p90, r.p99, r.worst))
        print(f"| {r.load} | {r.answered} | {sum(r.errors.values())} | {r.per_second:.1f} | {times} |", flush=True)
    for r in results:
        for error, count in r.errors.items():
            print(f"{r.load}: {count} x {error}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    return int(any(r.errors or not r.answered for r in results))


if __name__ == "__main__":
    sys.exit(main())
