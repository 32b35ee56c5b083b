# docker build -t multiscale-gan .
# docker run --rm --gpus all -p 8000:8000 multiscale-gan                      # the explorer, with the bundled model
# docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD:/work" multiscale-gan \
#     multiscale-train --data patches.zip         # --ipc host: processes that read patches share memory with the trainer
#
# The runtime image has no nvcc: layers run in PyTorch on a GPU, after one warning. A base that has it compiles the CUDA kernels:
# docker build --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 -t multiscale-gan .
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}

# g++ compiles the kernels for CPUs on first use.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

# PyTorch in a layer of its own, which a change of the code leaves in the cache.
WORKDIR /opt/multiscale-gan
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt torch torchvision
COPY . .
RUN pip install --no-cache-dir --constraint constraints.txt '.[earth]'

# Any user may run it: --user "$(id -u):$(id -g)" writes to a mounted folder as oneself.
RUN useradd --uid 10001 --create-home multiscale && install -d -m 1777 /work && chown root /home/multiscale && chmod 1777 /home/multiscale
ENV HOME=/home/multiscale USER=multiscale
USER 10001
WORKDIR /work
EXPOSE 8000
CMD ["multiscale-zoom", "--host", "0.0.0.0", "--port", "8000", "--no-browser"]
