// The CUDA runtime without a GPU: memory is the host's, kernels run when somebody waits for them.
//
// It is as unhelpful as CUDA may be. What is asked of a stream happens no earlier than the wait that
// guarantees it, so that who reads too early reads what was there before; nobody but the recording
// stream may be touched while a CUDA graph is recorded; freed memory is gone for graphs that hold
// it; an error stays as long as the process. `Counters` says what has been done, and takes orders.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "fake_cuda.h"

// A file that the test maps too: numbers of 64 bits, in this order.
struct Counters {
  int64_t fail;          // in: the error that every call gives from now on, for good
  int64_t memory;        // in: bytes that the device has; 0: a GiB
  int64_t allocated;     // bytes of the device that are taken
  int64_t page_locked;   // bytes of host memory likewise
  int64_t up_locked, up_pageable;      // copies to the device, from which memory
  int64_t down_locked, down_pageable;  // and from it
  int64_t recorded, replayed;          // CUDA graphs
  int64_t kernels, unknown_kernels;
  int64_t violations;    // calls that a recording forbids
  int64_t overlaps;      // copies to the device while a stream had work to do
  int64_t across;        // copies within the device
  int64_t waits;         // of the host for a stream, an event or the device
  int64_t graphs;        // CUDA graphs that could be replayed
  int64_t linger;        // in: microseconds that a recording is kept open, for others to get in
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
  uint64_t asked = 0, done = 0;
  std::unique_ptr<Capture> capture;
};

// All that follows is for who holds the lock.
extern std::recursive_mutex lock;
extern std::vector<Stream*> streams;
extern Stream legacy;   // the default one
extern int recordings;  // under way

Counters& counters();

// Have a call end with this error.
int fail(int code);

// The error that stays, if there is one.
int broken();

// The error of who allocates, frees, waits or copies at once while somebody records: CUDA fails that
// call and the recording with it.
int forbidden();

// The stream that a handle names.
Stream& of(void* handle);

// Do what a stream was asked for, up to its op of that number.
void drain(Stream& stream, uint64_t until = UINT64_MAX);
void drain_blocking();
void drain_all();

using Blocks = std::map<char*, size_t>;
extern Blocks device_memory, locked_memory;
bool within(const Blocks& memory, const void* at, size_t size);
