# vr1 for a machine with NVIDIA GPUs. Not built yet.
#
#   docker build --tag vr1 .
#   docker run --gpus all --ipc host --volume "$PWD/runs:/vr1/runs" --volume "$PWD/data:/data:ro" vr1 \
#       fit --config configs/qlora_a100_40gb.yaml --data.root /data
#
# torch's own wheels bring the CUDA libraries that it was built with; the base has the system's part and Python 3.12.
FROM nvidia/cuda:13.2.0-runtime-ubuntu24.04

# gcc and the headers are for Triton, which compiles the kernels that decode.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 MPLBACKEND=Agg
RUN python3 -m venv /opt/venv

WORKDIR /vr1
# The dependencies first: a change of the code does not install them again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY vr1/__init__.py vr1/__init__.py
RUN pip install --no-cache-dir ".[datasets]" -c constraints.txt && pip uninstall --yes vr1
COPY vr1 vr1
COPY callbacks callbacks
COPY configs configs
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --no-deps --editable .

ENTRYPOINT ["python", "-m", "vr1"]
CMD ["doctor"]
