// Device memory and page-locked memory, and copies between them.

#include <cstdlib>
#include <cstring>

#include "runtime.h"

Blocks device_memory, locked_memory;

bool within(const Blocks& memory, const void* at, size_t size) {
  auto block = memory.upper_bound(const_cast<char*>(static_cast<const char*>(at)));
  if (block == memory.begin()) return false;
  --block;
  return static_cast<const char*>(at) + size <= block->first + block->second;
}

bool on_device(const void* at, size_t size) { return within(device_memory, at, size); }

namespace {

int allocate(void** at, size_t size, Blocks& memory, int64_t& taken, int64_t most) {
  if (int code = forbidden()) return code;
  if (most && taken + static_cast<int64_t>(size) > most) return fail(kOutOfMemory);
  char* block = static_cast<char*>(aligned_alloc(256, (size + 511) / 256 * 256));
  memset(block, 0xFB, size);  // a value that no test expects
  memory[block] = size;
  taken += static_cast<int64_t>(size);
  *at = block;
  return kSuccess;
}

int release(void* at, Blocks& memory, int64_t& taken) {
  if (!at) return kSuccess;
  if (int code = forbidden()) return code;
  drain_all();
  auto block = memory.find(static_cast<char*>(at));
  if (block == memory.end()) return fail(kInvalidValue);
  taken -= static_cast<int64_t>(block->second);
  free(block->first);
  memory.erase(block);
  return kSuccess;
}

int copy(void* to, const void* from, size_t size, void* on, bool wait) {
  std::lock_guard guard(lock);
  if (wait) {
    if (int code = forbidden()) return code;
  }
  Counters& count = counters();
  const bool up = on_device(to, size), down = on_device(from, size);
  const bool locked = within(locked_memory, up ? from : to, size);
  if (up && down) {
    count.across++;
  } else if (up) {
    (locked ? count.up_locked : count.up_pageable)++;
    for (Stream* stream : streams) count.overlaps += !stream->ops.empty();
  } else if (down) {
    (locked ? count.down_locked : count.down_pageable)++;
  }
  std::vector<char> staged;  // CUDA copies ordinary memory before it returns
  const bool stage = up && !down && !locked && !of(on).capture;
  if (stage) staged.assign(static_cast<const char*>(from), static_cast<const char*>(from) + size);
  const int code = enqueue(on, [=, staged = std::move(staged)] {
    if ((up && !on_device(to, size)) || (down && !on_device(from, size))) return illegal_address();
    memmove(to, stage ? staged.data() : from, size);
  });
  if (wait || (down && !up && !locked && !of(on).capture)) drain(of(on));
  return code;
}

}  // namespace

extern "C" {

int cudaMalloc(void** at, size_t size) {
  std::lock_guard guard(lock);
  const int64_t all = counters().memory ? counters().memory : int64_t{1} << 30;
  return allocate(at, size, device_memory, counters().allocated, all);
}
int cudaFree(void* at) {
  std::lock_guard guard(lock);
  return release(at, device_memory, counters().allocated);
}
int cudaHostAlloc(void** at, size_t size, unsigned) {
  std::lock_guard guard(lock);
  return allocate(at, size, locked_memory, counters().page_locked, 0);
}
int cudaMallocHost(void** at, size_t size) { return cudaHostAlloc(at, size, 0); }
int cudaFreeHost(void* at) {
  std::lock_guard guard(lock);
  return release(at, locked_memory, counters().page_locked);
}
int cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  std::lock_guard guard(lock);
  *total = counters().memory ? counters().memory : size_t{1} << 30;
  *free_bytes = *total - counters().allocated;
  return broken();
}
int cudaMemcpy(void* to, const void* from, size_t size, int) { return copy(to, from, size, 0, true); }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int, void* stream) {
  return copy(to, from, size, stream, false);
}
int cudaMemsetAsync(void* at, int value, size_t size, void* stream) {
  return enqueue(stream, [=] {
    if (!on_device(at, size)) return illegal_address();
    memset(at, value, size);
  });
}
int cudaMemset(void* at, int value, size_t size) { return cudaMemsetAsync(at, value, size, 0); }
int cudaPointerGetAttributes(void* attributes, const void* at) {
  std::lock_guard guard(lock);
  struct {
    int type, device;
    const void *on_device, *on_host;
  } found{on_device(at, 1) ? 2 : within(locked_memory, at, 1) ? 1 : 0, 0, at, at};
  memset(attributes, 0, 88);
  memcpy(attributes, &found, sizeof found);
  return 0;
}

}  // extern "C"
