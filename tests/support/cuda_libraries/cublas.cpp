// cuBLAS without a GPU: multiplies float32 matrices by the definition.

#include <cstdint>

#include "fake_cuda.h"

namespace {

constexpr int kExecutionFailed = 13, kNotSupported = 15, kFloat32 = 0;

struct Handle {
  void* stream = nullptr;
};

// C = alpha op(A) op(B) + beta C, column by column; op(A) is m x k, op(B) is k x n.
int multiply(void* handle, int a_turned, int b_turned, int m, int n, int k, const float* alpha,
             const float* a, int lda, int64_t a_stride, const float* b, int ldb, int64_t b_stride,
             const float* beta, float* c, int ldc, int64_t c_stride, int batch) {
  const float scale = *alpha, keep = *beta;
  const int code = enqueue(static_cast<Handle*>(handle)->stream, [=] {
    for (int i = 0; i < batch; i++) {
      const float *left = a + i * a_stride, *right = b + i * b_stride;
      float* const out = c + i * c_stride;
      const size_t reach = sizeof(float) * ((n - 1) * int64_t{ldc} + m);
      if (!on_device(left, 4) || !on_device(right, 4) || !on_device(out, reach))
        return illegal_address();
      for (int column = 0; column < n; column++)
        for (int row = 0; row < m; row++) {
          float sum = 0;
          for (int j = 0; j < k; j++)
            sum += left[a_turned ? j + row * int64_t{lda} : row + j * int64_t{lda}] *
                   right[b_turned ? column + j * int64_t{ldb} : j + column * int64_t{ldb}];
          float& value = out[row + column * int64_t{ldc}];
          value = scale * sum + (keep ? keep * value : 0);
        }
    }
  });
  return code ? kExecutionFailed : 0;
}

const float* floats(const void* at) { return static_cast<const float*>(at); }

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) { return *handle = new Handle, 0; }
int cublasDestroy_v2(void* handle) { return delete static_cast<Handle*>(handle), 0; }
int cublasSetStream_v2(void* handle, void* stream) {
  return static_cast<Handle*>(handle)->stream = stream, 0;
}
int cublasSetMathMode(void*, int) { return 0; }
int cublasGetMathMode(void*, int* mode) { return *mode = 0, 0; }
const char* cublasGetStatusName(int) { return "CUBLAS_STATUS"; }
const char* cublasGetStatusString(int) { return "a status of the fake library"; }

int cublasSgemm_v2(void* handle, int a_turned, int b_turned, int m, int n, int k, const float* alpha,
                   const float* a, int lda, const float* b, int ldb, const float* beta, float* c,
                   int ldc) {
  return multiply(handle, a_turned, b_turned, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}
int cublasSgemmStridedBatched(void* handle, int a_turned, int b_turned, int m, int n, int k,
                              const float* alpha, const float* a, int lda, long long a_stride,
                              const float* b, int ldb, long long b_stride, const float* beta, float* c,
                              int ldc, long long c_stride, int batch) {
  return multiply(handle, a_turned, b_turned, m, n, k, alpha, a, lda, a_stride, b, ldb, b_stride, beta,
                  c, ldc, c_stride, batch);
}
int cublasGemmEx(void* handle, int a_turned, int b_turned, int m, int n, int k, const void* alpha,
                 const void* a, int a_type, int lda, const void* b, int b_type, int ldb,
                 const void* beta, void* c, int c_type, int ldc, int, int) {
  if (a_type != kFloat32 || b_type != kFloat32 || c_type != kFloat32) return kNotSupported;
  return multiply(handle, a_turned, b_turned, m, n, k, floats(alpha), floats(a), lda, 0, floats(b), ldb,
                  0, floats(beta), static_cast<float*>(c), ldc, 0, 1);
}
int cublasGemmStridedBatchedEx(void* handle, int a_turned, int b_turned, int m, int n, int k,
                               const void* alpha, const void* a, int a_type, int lda,
                               long long a_stride, const void* b, int b_type, int ldb,
                               long long b_stride, const void* beta, void* c, int c_type, int ldc,
                               long long c_stride, int batch, int, int) {
  if (a_type != kFloat32 || b_type != kFloat32 || c_type != kFloat32) return kNotSupported;
  return multiply(handle, a_turned, b_turned, m, n, k, floats(alpha), floats(a), lda, a_stride,
                  floats(b), ldb, b_stride, floats(beta), static_cast<float*>(c), ldc, c_stride, batch);
}

#define REFUSED(name) \
  int name() { return kNotSupported; }
REFUSED(cublasDgeam)
REFUSED(cublasDgemmBatched)
REFUSED(cublasDgemmStridedBatched)
REFUSED(cublasDgemm_v2)
REFUSED(cublasDgetrfBatched)
REFUSED(cublasDgetriBatched)
REFUSED(cublasGemmBatchedEx)
REFUSED(cublasScopy_v2)
REFUSED(cublasSgeam)
REFUSED(cublasSgemmBatched)
REFUSED(cublasSgetrfBatched)
REFUSED(cublasSgetriBatched)
REFUSED(cublasSscal_v2)

}  // extern "C"
