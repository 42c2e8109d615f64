# Triton with what the Python models of a repository import; they bring this project's code with them.
FROM nvcr.io/nvidia/tritonserver:26.10-py3
# --no-deps: numpy stays the one that the server's Python backend was built for.
RUN pip install --no-cache-dir --no-deps 'pillow>=10.3' 'simplejpeg>=1.8'
# Else ONNX Runtime sends usage data to Microsoft.
ENV ORT_DISABLE_TELEMETRY=1
