"""A network -> an artefact that production runs: ONNX, torch.export, TorchScript, TensorRT; int8. Proven, then handed over."""
