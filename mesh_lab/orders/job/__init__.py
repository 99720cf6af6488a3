"""The main job: all real orders through a mesh, by services that are processes or containers of their own."""

from mesh_lab.orders.job.run import OrderRun, run_orders
