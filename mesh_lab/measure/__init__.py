"""Measure without lying: load from child processes, results with their spread, and this machine's ledger."""

from mesh_lab.measure.load import deliver_load, publish_load
from mesh_lab.measure.measurement import Measurement, Run, measure, rounded
from mesh_lab.measure.paced import paced_load
from mesh_lab.measure.processor_time import processor_seconds
from mesh_lab.measure.reference import read_reference
