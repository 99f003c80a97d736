/* A stand-in for NVIDIA's libnvidia-ml.so.1. Its answers are the lines "<gpu>.<key> <value>" of the file $FAKE_NVML_STATE, the last of a
 * key counts, so that a test appends to change the world; "*.<key>" answers for all cards. A number of -1000 or less is the error -n-1000;
 * what has no line is NOT_SUPPORTED, as GeForce answers; "<gpu>.sleep_ms" delays each answer. With -DOLD_DRIVER newer symbols are missing. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
typedef unsigned long long u64;
typedef struct { int i; } *Dev;
typedef struct { u64 total, free, used; } memory_t;
typedef struct { char busIdLegacy[16]; unsigned domain, bus, device, pciDeviceId, pciSubSystemId; char busId[32]; } pci_t;
typedef struct { unsigned gpu, memory; } use_t;
typedef struct { unsigned version; u64 counts[11]; unsigned exceeded; } sram_t;
typedef struct { unsigned id, scope; long long stamp, latency; unsigned type; int ret; union { double d; unsigned ui; u64 ull; } value; } field_t;
typedef struct { unsigned pid; u64 used; unsigned a, b; } process_t;
enum { NOT_SUPPORTED = 3, LOST = 15 };
static int ids[64];
static int text(int gpu, const char *key, char *out, int absent) {
  char line[256], k[96], v[128], mine[96], all[96]; int rc = absent;
  const char *path = getenv("FAKE_NVML_STATE");
  FILE *f = fopen(path ? path : "/dev/null", "r");
  snprintf(mine, sizeof mine, "%d.%s", gpu, key); snprintf(all, sizeof all, "*.%s", key);
  while (f && fgets(line, sizeof line, f))
    if (sscanf(line, "%95s %127[^\n]", k, v) == 2 && (!strcmp(k, mine) || (gpu >= 0 && !strcmp(k, all)))) {
      long long n = atoll(v); rc = n <= -1000 ? (int)(-n - 1000) : 0; strcpy(out, v); }
  if (f) fclose(f);
  return rc; }
static int look(int gpu, const char *key, long long *v, int absent) {
  char out[128] = "0"; int rc = text(gpu, key, out, absent); *v = atoll(out); return rc; }
static int alive(Dev d) {
  long long v = 0;
  if (!look(d->i, "sleep_ms", &v, 1) && v > 0) usleep(v * 1000);
  return look(d->i, "lost", &v, 1) == 0 && v ? LOST : 0; }
#define GET(T, call, key) int call { long long v = 0; int rc = alive(d); if (!rc) rc = look(d->i, key, &v, NOT_SUPPORTED); if (!rc) *o = (T)v; return rc; }
#define TEXT(call, key) int call { char v[128] = ""; int rc = alive(d); if (!rc) rc = text(d->i, key, v, NOT_SUPPORTED); if (!rc) snprintf(s, n, "%s", v); return rc; }
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned f) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return "fake error"; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { char v[128] = "0.0-fake"; int rc = text(-1, "driver", v, 0); snprintf(s, n, "%s", v); return rc; }
int nvmlDeviceGetCount_v2(unsigned *o) { long long v = 0; int rc = look(-1, "count", &v, 0); *o = (unsigned)v; return rc; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Dev *d) { long long v; ids[i & 63] = i & 63; *d = (Dev)&ids[i & 63]; return look(i, "handle", &v, 0); }
int nvmlDeviceGetHandleByUUID(const char *uuid, Dev *d) {
  for (int i = 0; i < 64; i++) { char v[128] = ""; if (!text(i, "uuid", v, 1) && !strcmp(v, uuid)) { ids[i] = i; *d = (Dev)&ids[i]; return 0; } }
  return 6; }
TEXT(nvmlDeviceGetUUID(Dev d, char *s, unsigned n), "uuid")
TEXT(nvmlDeviceGetName(Dev d, char *s, unsigned n), "name")
TEXT(nvmlDeviceGetSerial(Dev d, char *s, unsigned n), "serial")
TEXT(nvmlDeviceGetVbiosVersion(Dev d, char *s, unsigned n), "vbios")
int nvmlDeviceGetMemoryInfo(Dev d, memory_t *m) {
  long long v = 0, u = 0; int rc = alive(d); if (!rc) rc = look(d->i, "memory_mib", &v, NOT_SUPPORTED); look(d->i, "used_mib", &u, 0);
  if (!rc) { m->total = (u64)v << 20; m->used = (u64)u << 20; m->free = m->total - m->used; } return rc; }
int nvmlDeviceGetCudaComputeCapability(Dev d, int *a, int *b) {
  char v[128] = ""; int rc = text(d->i, "capability", v, NOT_SUPPORTED); if (!rc && sscanf(v, "%d.%d", a, b) != 2) rc = 999; return rc; }
int nvmlDeviceGetPciInfo_v3(Dev d, pci_t *p) {
  char v[128] = ""; int rc = text(d->i, "bus", v, NOT_SUPPORTED); memset(p, 0, sizeof *p); if (!rc) snprintf(p->busId, 32, "%s", v); return rc; }
GET(unsigned, nvmlDeviceGetMaxPcieLinkGeneration(Dev d, unsigned *o), "gen_max")
GET(unsigned, nvmlDeviceGetMaxPcieLinkWidth(Dev d, unsigned *o), "width_max")
GET(unsigned, nvmlDeviceGetCurrPcieLinkGeneration(Dev d, unsigned *o), "gen")
GET(unsigned, nvmlDeviceGetCurrPcieLinkWidth(Dev d, unsigned *o), "width")
GET(unsigned, nvmlDeviceGetPcieReplayCounter(Dev d, unsigned *o), "replays")
GET(unsigned, nvmlDeviceGetEnforcedPowerLimit(Dev d, unsigned *o), "limit_mw")
GET(unsigned, nvmlDeviceGetPowerManagementDefaultLimit(Dev d, unsigned *o), "default_mw")
GET(unsigned, nvmlDeviceGetPowerUsage(Dev d, unsigned *o), "power_mw")
GET(u64, nvmlDeviceGetTotalEnergyConsumption(Dev d, u64 *o), "energy_mj")
GET(unsigned, nvmlDeviceGetTemperature(Dev d, int sensor, unsigned *o), "temp")
GET(unsigned, nvmlDeviceGetTemperatureThreshold(Dev d, int kind, unsigned *o), kind == 1 ? "slowdown" : "threshold")
GET(unsigned, nvmlDeviceGetFanSpeed(Dev d, unsigned *o), "fan")
GET(unsigned, nvmlDeviceGetClockInfo(Dev d, int kind, unsigned *o), kind == 1 ? "sm_mhz" : kind == 2 ? "mem_mhz" : "clock")
GET(unsigned, nvmlDeviceGetComputeMode(Dev d, unsigned *o), "compute_mode")
GET(unsigned, nvmlDeviceGetEccMode(Dev d, unsigned *o, unsigned *pending), "ecc")
GET(unsigned, nvmlDeviceGetPersistenceMode(Dev d, unsigned *o), "persistence")
GET(u64, nvmlDeviceGetTotalEccErrors(Dev d, int type, int counter, u64 *o), type ? "ecc_unc" : "ecc_cor")
GET(unsigned, nvmlDeviceGetRetiredPagesPendingStatus(Dev d, unsigned *o), "retired_pending")
int nvmlDeviceGetRetiredPages(Dev d, int cause, unsigned *n, u64 *pages) {
  long long v = 0; int rc = look(d->i, "retired", &v, NOT_SUPPORTED); unsigned have = rc || cause ? 0 : (unsigned)v;
  if (!rc && *n < have) rc = 7;
  *n = have; if (!rc && pages) memset(pages, 0, have * sizeof *pages); return rc; }
int nvmlDeviceGetUtilizationRates(Dev d, use_t *u) { long long v = 0; int rc = alive(d); if (!rc) rc = look(d->i, "use", &v, NOT_SUPPORTED); u->gpu = u->memory = (unsigned)v; return rc; }
int nvmlDeviceGetComputeRunningProcesses_v3(Dev d, unsigned *n, process_t *p) {
  long long v = 0; int rc = look(d->i, "processes", &v, 0); if (!rc && *n < v) rc = 7;
  *n = (unsigned)v; if (!rc && p) memset(p, 0, v * sizeof *p); return rc; }
static int put(Dev d, const char *key, int v) {
  long long may = 0; const char *path = getenv("FAKE_NVML_STATE"); FILE *f;
  if (look(d->i, "may_set", &may, 0) || !may) return 4;
  f = path ? fopen(path, "a") : 0; if (f) { fprintf(f, "%d.%s %d\n", d->i, key, v); fclose(f); } return 0; }
int nvmlDeviceSetGpcClkVfOffset(Dev d, int v) { return put(d, "core_offset", v); }
int nvmlDeviceSetMemClkVfOffset(Dev d, int v) { return put(d, "mem_offset", v); }
GET(unsigned, nvmlDeviceGetMaxClockInfo(Dev d, int kind, unsigned *o), "max_mhz")
int nvmlDeviceGetPowerManagementLimitConstraints(Dev d, unsigned *least, unsigned *most) {
  long long a = 0, b = 0; int rc = look(d->i, "least_mw", &a, NOT_SUPPORTED); if (!rc) rc = look(d->i, "most_mw", &b, NOT_SUPPORTED);
  *least = (unsigned)a; *most = (unsigned)b; return rc; }
int nvmlDeviceSetPowerManagementLimit(Dev d, unsigned v) { long long stuck = 0; return !look(d->i, "stuck", &stuck, 1) && stuck ? 0 : put(d, "limit_mw", (int)v); }
int nvmlDeviceSetGpuLockedClocks(Dev d, unsigned least, unsigned most) { return put(d, "locked", (int)most); }
int nvmlDeviceResetGpuLockedClocks(Dev d) { return put(d, "locked", 0); }
int nvmlDeviceResetMemoryLockedClocks(Dev d) { return put(d, "locked", 0); }
int nvmlDeviceGetP2PStatus(Dev d, Dev b, int index, int *o) { long long v = 1; int rc = look(d->i, "p2p", &v, 0); *o = v ? 0 : 1; return rc; }
#ifndef OLD_DRIVER
GET(u64, nvmlDeviceGetCurrentClocksEventReasons(Dev d, u64 *o), "reasons")
GET(int, nvmlDeviceGetGpcClkVfOffset(Dev d, int *o), "core_offset")
GET(int, nvmlDeviceGetMemClkVfOffset(Dev d, int *o), "mem_offset")
int nvmlDeviceGetRemappedRows(Dev d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
  long long p = 0, f = 0; int rc = look(d->i, "remap_pending", &p, NOT_SUPPORTED); if (!rc) look(d->i, "remap_failed", &f, 0);
  *c = *u = 0; *pending = (unsigned)p; *failed = (unsigned)f; return rc; }
int nvmlDeviceGetSramEccErrorStatus(Dev d, sram_t *s) {
  long long v = 0; int rc = look(d->i, "sram", &v, NOT_SUPPORTED); if (!rc) s->exceeded = (unsigned)v; return rc; }
int nvmlDeviceGetFieldValues(Dev d, int n, field_t *f) {
  int rc = alive(d);
  for (int i = 0; !rc && i < n; i++) { char key[32]; long long v = 0; snprintf(key, sizeof key, "field%u", f[i].id);
    f[i].ret = look(d->i, key, &v, NOT_SUPPORTED); f[i].type = 1; f[i].value.ull = (u64)v; }
  return rc; }
#endif
