"""Batch reconstruction: data sets of any size in, every row of them accounted for.

`latentd batch`. A plan fixes what goes in, which bundle it goes through and how it
is cut into shards; each shard is a pure function of the plan and is committed once; a job that was
killed goes on where it was. In process on ONNX Runtime, or through a server.
"""
