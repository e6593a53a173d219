# A container for workers elsewhere: Dataflow, Flink, Spark.
#
#     docker build --tag REGION-docker.pkg.dev/PROJECT/REPOSITORY/tips:1 .
#     docker build --build-arg JAX='jax[cuda12]' ...            # for NVIDIA GPUs
#
# Its Python and Beam must be the launcher's: Beam 2.77.0 (constraints.txt), Python 3.11.
FROM apache/beam_python3.11_sdk:2.77.0

ARG JAX=jax
ARG EXTRAS=gcp,aws

WORKDIR /opt/tips
COPY setup.py pyproject.toml constraints.txt README.md ./
COPY pipeline pipeline
COPY trainer trainer
COPY recipes recipes
COPY curation_configs curation_configs
RUN pip install --no-cache-dir --constraint constraints.txt "${JAX}" ".[${EXTRAS}]" \
    && pip check

# A worker computes in as many threads as it has cores, so each needs one alone.
ENV OPENBLAS_NUM_THREADS=1

# To hold checkpoints, so that no worker downloads them, build on this image:
#
#     FROM tips:1
#     COPY siglip2-base-patch16-224 /checkpoints/siglip2-base-patch16-224
#
# and name the same path to the launcher, which reads the weights as well.
