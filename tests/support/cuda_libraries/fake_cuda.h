// What the stand-ins for CUDA's libraries share.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

using Op = std::function<void()>;

// Have `op` done on a CUDA stream, when somebody waits for that; an error of the runtime's.
__attribute__((visibility("default"))) int enqueue(void* stream, Op op);

__attribute__((visibility("default"))) bool on_device(const void* at, size_t size);

// What reading beyond the device's memory leads to: no call succeeds any more.
__attribute__((visibility("default"))) void illegal_address();

// What a kernel of ONNX Runtime's does with these arguments, by its mangled name; empty: not known.
Op kernel(const std::string& name, void** arguments);
