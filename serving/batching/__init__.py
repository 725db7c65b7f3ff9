"""Requests to batches and back: calls that wait, the queue's rules, and the lane that runs it.

Knows neither gRPC nor ONNX nor what a model is: rows in, rows out.
"""
