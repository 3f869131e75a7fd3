# docker build -f docs/docker/cpu.Dockerfile -t homework . && docker run --rm -v "$PWD/mine:/mine" -w /mine homework --help
FROM python:3.12-slim
# PyTorch without CUDA has an index of its own
ARG INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir torch --index-url "$INDEX"
RUN --mount=type=bind,target=/source,rw pip install --no-cache-dir "/source[report,shards]"
ENTRYPOINT ["homework"]
