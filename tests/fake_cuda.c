/* A stand-in for the driver's libcuda.so.1: one card of $FAKE_CUDA_MIB MiB, whose memory is this machine's. With $FAKE_CUDA_BAD its memory forgets a bit;
 * $FAKE_CUDA_FAIL is the error of every allocation. Calls are counted at the end of the file $FAKE_CUDA_LOG. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef HIP /* AMD's twin of it: the same calls by other names */
#define cuInit hipInit
#define cuDeviceGetByPCIBusId hipDeviceGetByPCIBusId
#define cuDevicePrimaryCtxRetain hipDevicePrimaryCtxRetain
#define cuDevicePrimaryCtxRelease_v2 hipDevicePrimaryCtxRelease
#define cuCtxSetCurrent hipCtxSetCurrent
#define cuCtxSynchronize hipCtxSynchronize
#define cuMemAlloc_v2 hipMalloc
#define cuMemFree_v2 hipFree
#define cuMemsetD32_v2 hipMemsetD32
#define cuMemcpyDtoH_v2 hipMemcpyDtoH
#endif
typedef unsigned long long u64;
static u64 left = 0;
static void told(const char *what, u64 n) {
  const char *path = getenv("FAKE_CUDA_LOG"); FILE *f = path ? fopen(path, "a") : 0;
  if (f) { fprintf(f, "%s %llu\n", what, n); fclose(f); } }
int cuInit(unsigned f) { const char *m = getenv("FAKE_CUDA_MIB"); left = (m ? strtoull(m, 0, 10) : 64) << 20; return 0; }
int cuDeviceGetByPCIBusId(int *d, const char *bus) { *d = 0; told(bus, 0); return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemAlloc_v2(u64 *p, size_t n) {
  const char *fail = getenv("FAKE_CUDA_FAIL"); if (fail) return atoi(fail);
  if (n > left) return 2; left -= n; *p = (u64)malloc(n); return *p ? 0 : 2; }
int cuMemFree_v2(u64 p) { free((void *)p); return 0; }
int cuMemsetD32_v2(u64 p, unsigned v, size_t n) { for (size_t i = 0; i < n; i++) ((unsigned *)p)[i] = v; told(v ? "filled" : "zeroed", n * 4); return 0; }
int cuMemcpyDtoH_v2(void *to, u64 p, size_t n) { memcpy(to, (void *)p, n); if (getenv("FAKE_CUDA_BAD")) ((char *)to)[0] ^= 4; return 0; }
