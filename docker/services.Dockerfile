# The services of the order mesh: publisher, worker and read model, in one small image without root.
# Built from the repository's root: docker compose -f docker/compose.yaml build worker
#
# A tag can be moved. Where a build must be the same for ever, name the base by its digest as well:
#   --build-arg PYTHON_IMAGE=python:3.13.9-slim-bookworm@sha256:<the digest that `docker buildx imagetools` shows>
ARG PYTHON_IMAGE=python:3.13.9-slim-bookworm
FROM ${PYTHON_IMAGE}

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONPATH=/app

# Nothing but what the services import; `make lock` writes the list, with a hash for every file.
COPY docker/services.lock /app/
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes -r /app/services.lock

# The part of the package that needs no notebook and starts no servers.
COPY --chown=1000:1000 mesh_lab/__init__.py mesh_lab/errors.py mesh_lab/processes.py mesh_lab/tls.py /app/mesh_lab/
COPY --chown=1000:1000 mesh_lab/patterns /app/mesh_lab/patterns
COPY --chown=1000:1000 mesh_lab/orders /app/mesh_lab/orders

USER 1000:1000
ENTRYPOINT ["python", "-m", "mesh_lab.orders"]
