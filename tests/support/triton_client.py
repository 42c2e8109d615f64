"""A client of a Triton server, for test_triton.py: it runs in .venv-triton, since tritonclient's protobuf is not ours.

    .venv-triton/bin/python tests/support/triton_client.py HTTP_PORT GRPC_PORT

Reads a call as JSON from every line of stdin, and answers in a line. Everything goes through NVIDIA's tritonclient.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc  # pyright: ignore[reportMissingImports]
import tritonclient.http  # pyright: ignore[reportMissingImports]
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2  # pyright: ignore[reportMissingImports]
from tritonclient.utils import InferenceServerException, triton_to_np_dtype  # pyright: ignore[reportMissingImports]

MODULES: dict[str, Any] = {"http": tritonclient.http, "grpc": tritonclient.grpc}
PORTS = dict(zip(MODULES, sys.argv[1:3], strict=True)) if len(sys.argv) > 2 else {}


def connect(protocol: str) -> Any:
    return MODULES[protocol].InferenceServerClient(f"127.0.0.1:{PORTS[protocol]}")


def encode(protocol: str, name: str, kind: str, values: np.ndarray) -> Any:
    tensor = MODULES[protocol].InferInput(name, list(values.shape), kind)
    tensor.set_data_from_numpy(values)
    return tensor


def images(protocol: str, files: list[str]) -> list[Any]:
    values = np.array([[Path(file).read_bytes()] for file in files], dtype=np.object_)
    return [encode(protocol, "image", "BYTES", values)]


def plain(values: np.ndarray) -> list[Any]:
    """As JSON takes it; strings are UTF-8."""
    return np.vectorize(bytes.decode, otypes=[object])(values).tolist() if values.dtype == object else values.tolist()


def status(error: InferenceServerException) -> dict[str, str]:
    return {"error": error.message() or "", "status": str(error.status())}


def infer(
    protocol: str,
    model: str,
    files: list[str] | None = None,
    tensor: dict[str, Any] | None = None,
    outputs: list[str] | None = None,
    version: str = "",
    best: int = 0,
) -> dict[str, Any]:
    """Encoded images, or a tensor {name, kind, values}, to a model: all or some outputs, or their ``best`` classes."""
    client = connect(protocol)
    if tensor is None:
        given = images(protocol, files or [])
    else:
        values = np.asarray(tensor["values"], triton_to_np_dtype(tensor["kind"]))
        given = [encode(protocol, tensor["name"], tensor["kind"], values)]
    asked = [MODULES[protocol].InferRequestedOutput(name, class_count=best) for name in outputs] if outputs else None
    try:
        answer = client.infer(model, given, model_version=version, outputs=asked)
    except InferenceServerException as error:
        return status(error)
    about = answer.get_response()
    about = about if isinstance(about, dict) else json_format.MessageToDict(about, preserving_proto_field_name=True)
    values = {output["name"]: plain(answer.as_numpy(output["name"])) for output in about["outputs"]}
    return {"outputs": values, "version": about["model_version"]}


def statistics(model: str, version: str = "") -> dict[str, Any]:
    return connect("http").get_inference_statistics(model, version)["model_stats"][-1]


def ready(model: str | None = None, version: str = "") -> bool:
    client = connect("http")
    return client.is_model_ready(model, version) if model else client.is_server_ready()


def parse(file: str) -> dict[str, Any]:
    """A config.pbtxt by Triton's own schema, which knows every field's name and type."""
    config = text_format.Parse(Path(file).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def hammer(model: str, files: list[str], expected: list[list[int]], clients: int, seconds: float) -> dict[str, Any]:
    """``clients`` threads, half over HTTP and half over gRPC, that ask without a pause; each answer is checked."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    guard = threading.Lock()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        protocol = "http" if number % 2 else "grpc"
        connection = connect(protocol)
        prepared = [images(protocol, [file]) for file in files]
        asked = [MODULES[protocol].InferRequestedOutput("classes")]
        i = number
        while time.monotonic() < end:
            which = i % len(files)
            i += 1
            with guard:
                counts["sent"] += 1
            try:
                classes = connection.infer(model, prepared[which], outputs=asked).as_numpy("classes").tolist()
                outcome = "right" if classes == [expected[which]] else "wrong"
            except Exception as error:  # whatever went wrong: the request is lost
                outcome = "lost"
                with guard:
                    errors[f"{protocol}: {type(error).__name__}: {error}"] += 1
            with guard:
                counts[outcome] += 1

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    return {"counts": {key: counts[key] for key in ("sent", "right", "wrong", "lost")}, "errors": dict(errors)}


CALLS = {call.__name__: call for call in (infer, statistics, ready, parse, hammer)}

if __name__ == "__main__":
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer: dict[str, Any] = {"answer": CALLS[name](**arguments)}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
