# docker build -f docs/docker/cpu.Dockerfile -t homework . && docker run --rm -v "$PWD/mine:/mine" -w /mine homework --help
FROM python:3.12-slim
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . /source
RUN pip install --no-cache-dir "/source[report,shards]"
ENTRYPOINT ["homework"]
