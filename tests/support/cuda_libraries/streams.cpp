// Streams, events and CUDA graphs.

#include "runtime.h"

#include <unistd.h>

namespace {

struct Event {
  Stream* stream = nullptr;
  uint64_t queued = 0;
};

struct Graph {
  std::vector<Op> ops;
};

}  // namespace

extern "C" {

int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
  std::lock_guard guard(lock);
  if (int code = forbidden()) return code;
  auto* made = new Stream;
  made->blocking = !(flags & 1);
  streams.push_back(made);
  *stream = made;
  return 0;
}
int cudaStreamCreate(void** stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(void* stream) {
  std::lock_guard guard(lock);
  drain(of(stream));
  std::erase(streams, &of(stream));
  delete &of(stream);
  return 0;
}
int cudaDeviceSynchronize() {
  std::lock_guard guard(lock);
  counters().waits++;
  if (int code = forbidden()) return code;
  drain_all();
  return broken();
}
int cudaStreamSynchronize(void* stream) {
  std::lock_guard guard(lock);
  counters().waits++;
  if (int code = forbidden()) return code;
  if (&of(stream) == &legacy) drain_blocking();
  drain(of(stream));
  return broken();
}
int cudaEventCreateWithFlags(void** event, unsigned) { return *event = new Event, 0; }
int cudaEventCreate(void** event) { return cudaEventCreateWithFlags(event, 0); }
int cudaEventDestroy(void* event) { return delete static_cast<Event*>(event), 0; }
int cudaEventRecordWithFlags(void* event, void* stream, unsigned) {
  std::lock_guard guard(lock);
  if (int code = broken()) return code;
  *static_cast<Event*>(event) = {&of(stream), of(stream).queued};
  return 0;
}
int cudaEventRecord(void* event, void* stream) { return cudaEventRecordWithFlags(event, stream, 0); }
int cudaEventSynchronize(void* event) {
  std::lock_guard guard(lock);
  counters().waits++;
  if (int code = forbidden()) return code;
  const Event& mark = *static_cast<Event*>(event);
  if (mark.stream) drain(*mark.stream, mark.queued);
  return broken();
}
int cudaEventElapsedTime(float* milliseconds, void*, void*) { return *milliseconds = 0.01f, 0; }
int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
  const Event mark = *static_cast<Event*>(event);
  if (!mark.stream || mark.stream == &of(stream)) return 0;
  return enqueue(stream, [mark] { drain(*mark.stream, mark.queued); });
}
int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
  return enqueue(stream, [=] { function(data); });
}

// CUDA graphs.

int cudaStreamBeginCapture(void* stream, int) {  // every mode counts as the strictest one
  std::lock_guard guard(lock);
  if (int code = broken()) return code;
  of(stream).capture = std::make_unique<Capture>();
  captures++;
  return 0;
}
int cudaStreamIsCapturing(void* stream, int* status) {
  std::lock_guard guard(lock);
  const auto& capture = of(stream).capture;
  return *status = !capture ? 0 : capture->broken ? 2 : 1, 0;
}
int cudaStreamEndCapture(void* stream, void** graph) {
  usleep(counters().linger);
  std::lock_guard guard(lock);
  if (int code = broken()) return code;
  auto capture = std::move(of(stream).capture);
  captures--;
  *graph = nullptr;
  if (capture->broken) return fail(kCaptureInvalidated);
  counters().captured++;
  *graph = new Graph{std::move(capture->ops)};
  return 0;
}
int cudaGraphInstantiate(void** executable, void* graph, unsigned long long) {
  counters().graphs++;
  return *executable = new Graph(*static_cast<Graph*>(graph)), 0;
}
int cudaGraphLaunch(void* executable, void* stream) {
  std::lock_guard guard(lock);
  counters().replayed++;
  for (const Op& op : static_cast<Graph*>(executable)->ops)
    if (int code = enqueue(stream, op)) return code;
  return 0;
}
int cudaGraphDestroy(void* graph) { return delete static_cast<Graph*>(graph), 0; }
int cudaGraphExecDestroy(void* graph) {
  counters().graphs--;
  return delete static_cast<Graph*>(graph), 0;
}

}  // extern "C"
