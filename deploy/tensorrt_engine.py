"""Build a TensorRT engine from the ONNX file beside this script, and run it.

    python build_engine.py            # model.onnx -> model.plan, for the GPU of this machine

Needs TensorRT 10 or newer and an NVIDIA GPU; `run` also needs PyTorch with CUDA. build_engine.json has the settings.
resnext-hub copies this file beside the ONNX file, and runs the same code itself if there is a GPU.
"""

import json
import sys
from pathlib import Path


def build(onnx, plan, profile, tf32):
    """Build an engine file from an ONNX file.

    Args:
        profile: {"input": name, "min": shape, "opt": shape, "max": shape}; the batch is the first number of a shape.
        tf32: allow the inputs of float32 products to be rounded to 10 bits, which is not fp32.

    Raises:
        RuntimeError: TensorRT cannot build it; stderr has its messages.
    """
    import tensorrt  # pyright: ignore[reportMissingImports]

    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    # The precision is part of the graph. TensorRT 11 always works so; TensorRT 10 needs the flag.
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):  # a path, so that weights beside the file are found
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(tensorrt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(profile["input"], profile["min"], profile["opt"], profile["max"])
    config.add_optimization_profile(shapes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError("TensorRT could not build the engine: see its messages above.")
    Path(plan).write_bytes(engine)


def run(plan):
    """Open an engine file; return a function from a numpy batch to a list of numpy outputs."""
    import tensorrt  # pyright: ignore[reportMissingImports]
    import torch

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(Path(plan).read_bytes())
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    (given,) = [n for n in names if engine.get_tensor_mode(n) == tensorrt.TensorIOMode.INPUT]
    types = {tensorrt.float32: torch.float32, tensorrt.int64: torch.int64, tensorrt.int32: torch.int32}

    def call(batch):
        tensors = {given: torch.from_numpy(batch).cuda().contiguous()}
        context.set_input_shape(given, tuple(batch.shape))
        for name in names:
            if name != given:
                shape = tuple(context.get_tensor_shape(name))
                tensors[name] = torch.empty(shape, dtype=types[engine.get_tensor_dtype(name)], device="cuda")
            context.set_tensor_address(name, tensors[name].data_ptr())
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine.")
        stream.synchronize()
        return [tensors[name].cpu().numpy() for name in names if name != given]

    return call


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    settings = json.loads((here / "build_engine.json").read_text(encoding="utf-8"))
    build(here / settings["onnx"], here / settings["plan"], settings["profile"], settings["tf32"])
    sys.stdout.write(f"{here / settings['plan']}\n")
