"""Embeds a collection on a Ray cluster, into the table that `search` reads.

The pictures are listed once, in a fixed order, and cut into shards (`plan`). Ray Data carries shards through
three stages: decoding in CPU tasks, encoding in actors, writing one file for each shard, which holds its rows
and its errors, and is replaced as a whole whenever the shard is done again. When every shard is there, and
every count agrees, one process adds them to the table in one step (`commit`). So whatever is killed, and
whatever Ray does twice, a picture is in the table once or, with a reason, among the errors.
"""
