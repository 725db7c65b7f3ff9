// The driver: initializes and reports one GPU.
extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGetCount(int* count) { return *count = 1, 0; }
int cuTensorMapEncodeTiled() { return 801; }
}
