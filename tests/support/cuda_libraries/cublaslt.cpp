// cuBLASLt without a GPU: only creates and destroys handles.

extern "C" {

int cublasLtCreate(void** handle) { return *handle = new int, 0; }
int cublasLtDestroy(void* handle) { return delete static_cast<int*>(handle), 0; }

#define REFUSED(name) \
  int name() { return 15; }
REFUSED(cublasLtMatmul)
REFUSED(cublasLtMatmulAlgoConfigSetAttribute)
REFUSED(cublasLtMatmulAlgoGetHeuristic)
REFUSED(cublasLtMatmulAlgoInit)
REFUSED(cublasLtMatmulDescCreate)
REFUSED(cublasLtMatmulDescDestroy)
REFUSED(cublasLtMatmulDescSetAttribute)
REFUSED(cublasLtMatmulPreferenceCreate)
REFUSED(cublasLtMatmulPreferenceDestroy)
REFUSED(cublasLtMatmulPreferenceSetAttribute)
REFUSED(cublasLtMatrixLayoutCreate)
REFUSED(cublasLtMatrixLayoutDestroy)
REFUSED(cublasLtMatrixLayoutSetAttribute)
REFUSED(cublasLtMatrixTransform)
REFUSED(cublasLtMatrixTransformDescCreate)
REFUSED(cublasLtMatrixTransformDescDestroy)

}  // extern "C"
