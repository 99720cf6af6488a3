"""The checks of the exercises, one module for each notebook, loaded when one of its exercises is asked for.

How to write one stands at the top of :mod:`mesh_lab.notebook.exercises`.
"""

# By the number that stands before the dot in an exercise's own: the notebook, and the module with its checks.
NOTEBOOKS = {
    0: ("00_start_here", "start_here"),
    1: ("01_publish_and_subscribe", "publish_and_subscribe"),
    3: ("03_keep_orders_in_jetstream", "jetstream"),
    4: ("04_measure_without_lying", "measure_without_lying"),
    6: ("06_shard_by_subject", "shard_by_subject"),
    7: ("07_push_back", "push_back"),
}
