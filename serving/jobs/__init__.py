"""Batch reconstruction: data sets of any size in, every row of them accounted for.

`latentd batch`. A plan fixes the inputs, the bundle and the shards. Each shard is a pure function
of the plan and is committed once, so a killed job can resume. The model runs in process on ONNX
Runtime, or on a server.
"""
