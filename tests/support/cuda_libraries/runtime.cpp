// The state of the fake runtime: its counters, its streams' work, and its errors.

#include "runtime.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstdlib>

std::recursive_mutex lock;
std::vector<Stream*> streams;
Stream legacy;
int captures = 0;

namespace {
int sticky = 0;
thread_local int last_error = 0;
}  // namespace

Counters& counters() {
  static Counters* const mapped = [] {
    void* memory = MAP_FAILED;
    if (const char* path = getenv("FAKE_CUDA_COUNTERS")) {
      const int file = open(path, O_RDWR);
      if (file >= 0)
        memory = mmap(nullptr, sizeof(Counters), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    return memory == MAP_FAILED ? new Counters{} : static_cast<Counters*>(memory);
  }();
  return *mapped;
}

int fail(int code) {
  if (code) last_error = code;
  return code;
}

int broken() {
  if (!sticky) sticky = static_cast<int>(counters().fail);
  return fail(sticky);
}

int forbidden() {
  if (broken()) return sticky;
  if (!captures) return kSuccess;
  counters().violations++;
  for (Stream* stream : streams)
    if (stream->capture) stream->capture->broken = true;
  return fail(kCaptureUnsupported);
}

Stream& of(void* stream) {
  const auto number = reinterpret_cast<uintptr_t>(stream);
  return number <= 2 ? legacy : *static_cast<Stream*>(stream);
}

void drain(Stream& stream, uint64_t until) {
  while (!stream.ops.empty() && stream.done < until) {
    const Op op = std::move(stream.ops.front());
    stream.ops.pop_front();
    stream.done++;
    op();
  }
}

void drain_blocking() {
  for (Stream* stream : streams)
    if (stream->blocking) drain(*stream);
}

void drain_all() {
  for (Stream* stream : streams) drain(*stream);
}

void illegal_address() { sticky = kIllegalAddress; }

int enqueue(void* on, Op op) {
  std::lock_guard guard(lock);
  if (broken()) return sticky;
  Stream& stream = of(on);
  if (stream.capture) {
    stream.capture->ops.push_back(std::move(op));
  } else if (&stream == &legacy) {
    drain_blocking();
    op();
  } else {
    stream.ops.push_back(std::move(op));
    stream.queued++;
  }
  return kSuccess;
}

extern "C" {

int cudaPeekAtLastError() { return sticky ? sticky : last_error; }
int cudaGetLastError() {
  const int code = sticky ? sticky : last_error;
  last_error = 0;
  return code;
}
const char* cudaGetErrorName(int code) {
  switch (code) {
    case kSuccess: return "cudaSuccess";
    case kOutOfMemory: return "cudaErrorMemoryAllocation";
    case kInsufficientDriver: return "cudaErrorInsufficientDriver";
    case kIllegalAddress: return "cudaErrorIllegalAddress";
    case kLaunchFailure: return "cudaErrorLaunchFailure";
    case kNotSupported: return "cudaErrorNotSupported";
    case kCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case kCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
  }
  return "another error";
}
const char* cudaGetErrorString(int code) {
  switch (code) {
    case kOutOfMemory: return "out of memory";
    case kIllegalAddress: return "an illegal memory access was encountered";
    case kCaptureUnsupported: return "operation not permitted when stream is capturing";
    case kCaptureInvalidated: return "operation failed due to a previous error during capture";
  }
  return cudaGetErrorName(code);
}

}  // extern "C"
