# A seat of a workshop: the course, its environment and a single-user JupyterLab, without root.
# Built from the repository's root: docker build -f docker/seat.Dockerfile -t mesh-lab-seat:0.1.0 .
ARG PYTHON_IMAGE=python:3.13.9-slim-bookworm
FROM ${PYTHON_IMAGE}

# Everything that the notebooks need, and JupyterHub's half of a seat; `make lock` writes the list, with a hash for every file.
COPY requirements-workshop.lock /course/
RUN pip install --no-cache-dir --root-user-action=ignore --require-hashes -r /course/requirements-workshop.lock

COPY README.md /course/
COPY mesh_lab /course/mesh_lab
COPY notebooks /course/notebooks

# A volume that is mounted at the home for the first time takes its owner from here.
RUN python -c "import os; os.makedirs('/home/seat'); os.chown('/home/seat', 1000, 1000)"
ENV PYTHONPATH=/course HOME=/home/seat MESH_LAB_HOME=/home/seat/.mesh-lab JUPYTER_RUNTIME_DIR=/tmp/seat
WORKDIR /home/seat
USER 1000:1000
CMD ["python", "-m", "mesh_lab.seats.seat"]
