"""The batching engine: a queue with rules of fairness, a batcher, and the runner of its batches.

Rows in, rows out: this package knows neither gRPC, nor authentication, nor ONNX, nor models. Of a
call it knows `batcher.RequestContext`: a deadline, a priority, where to record times, and how to
hear of a cancellation. Of `latentd.calls` it uses only `coroutines`.
"""
