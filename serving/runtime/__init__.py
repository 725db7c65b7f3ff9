"""ONNX Runtime: which provider runs a graph, its memory, its cost, and whether it is correct."""
