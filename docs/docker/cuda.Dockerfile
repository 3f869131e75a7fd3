# docker build -f docs/docker/cuda.Dockerfile -t homework:cuda . && docker run --rm --gpus all --ipc host -v "$PWD/mine:/mine"
#     -w /mine --entrypoint torchrun homework:cuda --nproc-per-node 8 -m homework.train BSQPatchAutoEncoder
FROM python:3.12-slim
# PyTorch's own wheels bring the CUDA libraries; the host has the driver and the NVIDIA container toolkit
RUN pip install --no-cache-dir torch
RUN --mount=type=bind,target=/source,rw pip install --no-cache-dir "/source[report,shards]"
ENTRYPOINT ["homework"]
