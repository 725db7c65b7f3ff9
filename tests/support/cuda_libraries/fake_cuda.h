// Shared by the fake CUDA libraries.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

using Op = std::function<void()>;

// Queue `op` on a CUDA stream; it runs when a thread waits for it. Returns a runtime error.
__attribute__((visibility("default"))) int enqueue(void* stream, Op op);

__attribute__((visibility("default"))) bool on_device(const void* at, size_t size);

// Called after an access outside of the device's memory: every later call fails.
__attribute__((visibility("default"))) void illegal_address();

// The work of an ONNX Runtime kernel with these arguments, by its mangled name; empty: unknown.
Op kernel(const std::string& name, void** arguments);
