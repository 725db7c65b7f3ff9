// The CUDA runtime without a GPU: memory is the host's, and kernels run when a thread waits for them.
//
// It is as strict as CUDA may be. A stream's work runs as late as allowed, at the wait that
// guarantees it: code that reads too early reads the old values. While a CUDA graph is captured, only
// the capturing stream may be used. A graph that refers to freed memory fails. An error stays until
// the process ends. `Counters` counts the calls; a test also sets some of them as inputs.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fake_cuda.h"

// A file that the test maps too: 64-bit numbers in this order.
struct Counters {
  int64_t fail;          // in: the error that every call returns from now on
  int64_t memory;        // in: bytes that the device has; 0: a GiB
  int64_t allocated;     // bytes allocated on the device
  int64_t page_locked;   // bytes allocated as page-locked host memory
  int64_t up_locked, up_pageable;      // copies to the device, by the kind of host memory
  int64_t down_locked, down_pageable;  // copies from the device
  int64_t captured, replayed;          // CUDA graphs
  int64_t kernels, unknown_kernels;
  int64_t violations;    // calls that a capture forbids
  int64_t overlaps;      // copies to the device while a stream had work to do
  int64_t across;        // copies within the device
  int64_t waits;         // by the host for a stream, an event or the device
  int64_t graphs;        // CUDA graphs that could be replayed
  int64_t linger;        // in: microseconds that a capture is kept open, so that other threads interfere
};

// Of the runtime's error codes.
constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kInsufficientDriver = 35,
              kIllegalAddress = 700, kLaunchFailure = 719, kNotSupported = 801,
              kCaptureUnsupported = 900, kCaptureInvalidated = 901;

struct Capture {
  std::vector<Op> ops;
  bool broken = false;
};

struct Stream {
  bool blocking = true;
  std::deque<Op> ops;
  uint64_t queued = 0, done = 0;
  std::unique_ptr<Capture> capture;
};

// The caller of everything below holds the lock.
extern std::recursive_mutex lock;
extern std::vector<Stream*> streams;
extern Stream legacy;   // the default one
extern int captures;  // captures in progress

Counters& counters();

// Make a call return this error.
int fail(int code);

// The sticky error, if there is one.
int broken();

// The error of a call that allocates, frees, waits or copies at once during a capture: CUDA fails the
// call and the capture.
int forbidden();

// The stream that a handle names.
Stream& of(void* handle);

// Run a stream's queued work, up to the op with that number.
void drain(Stream& stream, uint64_t until = UINT64_MAX);
void drain_blocking();
void drain_all();

using Blocks = std::map<char*, size_t>;
extern Blocks device_memory, locked_memory;
bool within(const Blocks& memory, const void* at, size_t size);
