/* A stand-in for libcudart in host memory, for tests of control flow: no GPU, no parallelism. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

int fail_malloc = 0, device_count = 1, live = 0, launches = 0, copies = 0;

int cudaGetDeviceCount(int *n) { *n = device_count; return device_count ? 0 : 100; }
int cudaRuntimeGetVersion(int *v) { *v = 12060; return 0; }
int cudaDriverGetVersion(int *v) { *v = 12080; return 0; }
int cudaDeviceGetAttribute(int *v, int which, int device) { *v = which == 75 ? 8 : which == 76 ? 7 : -1; return device; }
int cudaMemGetInfo(size_t *f, size_t *t) { *f = 1ul << 30; *t = 2ul << 30; return 0; }
int cudaMalloc(void **p, size_t n) { if (fail_malloc) return 2; live++; *p = malloc(n); return 0; }
int cudaFree(void *p) { live--; free(p); return 0; }
int cudaMallocHost(void **p, size_t n) { live++; *p = malloc(n); return 0; }
int cudaFreeHost(void *p) { live--; free(p); return 0; }
int cudaMemcpyAsync(void *d, const void *s, size_t n, int kind, void *stream) {
    if (kind != 1 && kind != 2) return 1;
    copies++; memcpy(d, s, n); return 0;
}
int cudaStreamCreateWithFlags(void **s, unsigned flags) { live++; *s = malloc(8); return flags == 1 ? 0 : 1; }
int cudaStreamSynchronize(void *s) { return 0; }
int cudaStreamDestroy(void *s) { live--; free(s); return 0; }
int cudaEventCreate(void **e) { live++; *e = malloc(sizeof(struct timespec)); return 0; }
int cudaEventRecord(void *e, void *s) { clock_gettime(CLOCK_MONOTONIC, e); return 0; }
int cudaEventElapsedTime(float *ms, void *a, void *b) {
    struct timespec *x = a, *y = b;
    *ms = (y->tv_sec - x->tv_sec) * 1e3f + (y->tv_nsec - x->tv_nsec) / 1e6f;
    return 0;
}
int cudaEventDestroy(void *e) { live--; free(e); return 0; }
int cudaStreamBeginCapture(void *s, int mode) { return mode == 1 ? 0 : 1; }
int cudaStreamEndCapture(void *s, void **g) { live++; *g = malloc(8); return 0; }
int cudaGraphInstantiateWithFlags(void **x, void *g, unsigned long long flags) { live++; *x = malloc(8); return 0; }
int cudaGraphLaunch(void *x, void *s) { launches++; return 0; }
int cudaGraphExecDestroy(void *x) { live--; free(x); return 0; }
int cudaGraphDestroy(void *g) { live--; free(g); return 0; }
const char *cudaGetErrorString(int code) {
    return code == 2 ? "out of memory" : code == 100 ? "no CUDA-capable device is detected" : "error";
}
