"""ONNX Runtime: which provider runs a graph, its memory, what it costs, and whether it is right."""
