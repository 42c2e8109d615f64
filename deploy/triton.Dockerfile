# Triton with the packages that the Python models of a repository import; they contain this project's own code.
# To pin the base image, append its digest (docker buildx imagetools inspect IMAGE): 26.10-py3@sha256:...
FROM nvcr.io/nvidia/tritonserver:26.10-py3
# --no-deps keeps the numpy that the server's Python backend was built for.
RUN pip install --no-cache-dir --no-deps 'pillow>=10.3' 'simplejpeg>=1.8'
# Otherwise ONNX Runtime sends usage data to Microsoft.
ENV ORT_DISABLE_TELEMETRY=1
# The image's own unprivileged user, triton-server.
USER 1000
