"""The main job: all real orders through the mesh, with every total checked."""
