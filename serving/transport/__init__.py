"""gRPC transport: listeners, handlers, TLS, authorization, admission, statuses, tracing.

It knows the methods by name only; `latentd.rpc` implements them.
"""
