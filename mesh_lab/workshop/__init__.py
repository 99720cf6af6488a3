"""A workshop's room: its mesh, the seats that join it, what they report, and the board that shows it.

The trainer's process (:mod:`.room`) starts the servers and alone writes the room's state, a KV bucket. A seat
(:mod:`.seat`) has a user that may send requests on one subject, and read their replies: nothing else.
"""
