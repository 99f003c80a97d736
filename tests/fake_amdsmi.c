/* A stand-in for AMD's libamd_smi.so (7.0). Its answers are the lines "<gpu>.<key> <value>" of the file $FAKE_AMDSMI_STATE, as in fake_nvml.c: the last of
 * a key counts; what has no line is NOT_SUPPORTED; "<gpu>.lost 1" makes every call fail as after a removed driver. Calls that are not here are made by
 * the test from amdsmi's own list of names, and say NOT_SUPPORTED. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
typedef struct { int i; } *Dev;
enum { NOT_SUPPORTED = 2, NO_DRV = 51, SIZE = 256 };
static int ids[64];
static int text(int gpu, const char *key, char *out) {
  char line[400], k[96], v[256], mine[96], all[96]; int rc = NOT_SUPPORTED;
  const char *path = getenv("FAKE_AMDSMI_STATE");
  FILE *f = fopen(path ? path : "/dev/null", "r");
  snprintf(mine, sizeof mine, "%d.%s", gpu, key); snprintf(all, sizeof all, "*.%s", key);
  while (f && fgets(line, sizeof line, f))
    if (sscanf(line, "%95s %255[^\n]", k, v) == 2 && (!strcmp(k, mine) || (gpu >= 0 && !strcmp(k, all)))) { strcpy(out, v); rc = 0; }
  if (f) fclose(f);
  return rc; }
static int look(int gpu, const char *key, u64 *v) { char out[256] = "0"; int rc = text(gpu, key, out); *v = strtoull(out, 0, 0); return rc; }
static int ask(Dev d, const char *key, u64 *v) { u64 lost = 0; return !look(d->i, "lost", &lost) && lost ? NO_DRV : look(d->i, key, v); }
static int say(Dev d, const char *key, char *out) { u64 lost = 0; return !look(d->i, "lost", &lost) && lost ? NO_DRV : text(d->i, key, out); }
int amdsmi_init(u64 flags) { u64 v = 0; return look(-1, "init", &v) ? 0 : (int)v; }
int amdsmi_shut_down(void) { return 0; }
int amdsmi_status_code_to_string(int rc, const char **s) { *s = "fake error"; return 0; }
int amdsmi_get_socket_handles(unsigned *n, void **h) { *n = 1; if (h) h[0] = &ids[63]; return 0; }
int amdsmi_get_processor_handles(void *socket, unsigned *n, void **h) {
  u64 v = 0; look(-1, "count", &v); *n = (unsigned)v; for (unsigned i = 0; h && i < *n; i++) { ids[i] = i; h[i] = &ids[i]; } return 0; }
struct asic { char name[SIZE]; unsigned vendor; char vendor_name[SIZE]; unsigned subvendor; u64 device; unsigned rev; char serial[SIZE]; unsigned oam, units, pad; u64 gfx; unsigned subsystem, more[21]; } __attribute__((packed));
int amdsmi_get_gpu_asic_info(Dev d, struct asic *a) {
  memset(a, 0, sizeof *a); int rc = say(d, "name", a->name); if (rc) return rc;
  a->vendor = 0x1002; strcpy(a->vendor_name, "Advanced Micro Devices, Inc."); text(d->i, "serial", a->serial); look(d->i, "gfx", &a->gfx); return 0; }
int amdsmi_get_gpu_device_uuid(Dev d, unsigned *n, char *s) { return say(d, "uuid", s); }
int amdsmi_get_gpu_device_bdf(Dev d, u64 *bdf) { return ask(d, "bdf", bdf); }
struct vram { unsigned type; char vendor[SIZE]; unsigned pad; u64 size; unsigned width, pad1; u64 bandwidth, more[37]; } __attribute__((packed));
int amdsmi_get_gpu_vram_info(Dev d, struct vram *v) { memset(v, 0, sizeof *v); u64 size = 0; int rc = ask(d, "vram_mib", &size); v->size = size; return rc; }
struct vbios { char name[SIZE], date[SIZE], part[SIZE], version[SIZE]; u64 more[68]; };
int amdsmi_get_gpu_vbios_info(Dev d, struct vbios *v) { memset(v, 0, sizeof *v); return say(d, "vbios", v->version); }
struct driver { char version[SIZE], date[SIZE], name[SIZE]; };
int amdsmi_get_gpu_driver_info(Dev d, struct driver *v) { memset(v, 0, sizeof *v); strcpy(v->name, "amdgpu"); return say(d, "driver", v->version); }
struct cap { u64 now, usual, dpm, least, most, more[3]; };
int amdsmi_get_power_cap_info(Dev d, unsigned sensor, struct cap *c) { memset(c, 0, sizeof *c); int rc = ask(d, "cap_uw", &c->now); look(d->i, "cap_default_uw", &c->usual); return rc; }
struct pcie { unsigned short width; char pad[2]; unsigned speed, version, slot, version_max; char pad1[4]; u64 more[9];
  unsigned short now_width; char pad2[2]; unsigned now_speed, bandwidth; char pad3[4]; u64 replays, recovery, roll, sent, received; unsigned other; char pad4[4]; u64 more1[12], more2[32]; } __attribute__((packed));
int amdsmi_get_pcie_info(Dev d, struct pcie *p) {
  u64 v = 0; memset(p, 0, sizeof *p); int rc = ask(d, "width", &v); if (rc) return rc; p->now_width = v;
  p->width = look(d->i, "width_max", &v) ? 0xFFFF : v; p->speed = look(d->i, "speed_max", &v) ? 0xFFFFFFFF : v;
  p->now_speed = look(d->i, "speed", &v) ? 0xFFFFFFFF : v; p->replays = look(d->i, "replays", &v) ? ~0ull : v; return 0; }
struct power { u64 socket; unsigned now, average; u64 a, b, c; unsigned limit, pad; u64 more[18]; };
int amdsmi_get_power_info(Dev d, struct power *p) {
  u64 v = 0; memset(p, 0, sizeof *p); int rc = ask(d, "average_w", &v); p->average = rc ? 0xFFFF : v;
  int rn = ask(d, "power_w", &v); p->now = rn ? 0xFFFF : v; return rn && rc ? rn : 0; }
struct clk { unsigned now, least, most; unsigned char locked, sleep, pad[2]; unsigned more[4]; };
int amdsmi_get_clock_info(Dev d, int kind, struct clk *c) { u64 v = 0; memset(c, 0, sizeof *c); int rc = ask(d, kind == 4 ? "mem_mhz" : "gfx_mhz", &v); c->now = v; return rc; }
struct engine { unsigned gfx, umc, mm, more[13]; };
int amdsmi_get_gpu_activity(Dev d, struct engine *e) { u64 v = 0; memset(e, 0, sizeof *e); int rc = ask(d, "use", &v); e->gfx = v; return rc; }
struct usage { unsigned total, used, more[2]; };
int amdsmi_get_gpu_vram_usage(Dev d, struct usage *u) { u64 v = 0; memset(u, 0, sizeof *u); int rc = ask(d, "used_mib", &v); u->used = v; return rc; }
int amdsmi_get_temp_metric(Dev d, int where, int metric, long long *o) {
  u64 v = 0; int rc = ask(d, metric == 5 ? "critical_c" : where == 2 ? "vram_c" : "hotspot_c", &v); *o = (long long)v; return rc; }
int amdsmi_get_energy_count(Dev d, u64 *n, float *resolution, u64 *stamp) { int rc = ask(d, "energy", n); *resolution = 15.3f; *stamp = 1; return rc; }
int amdsmi_get_gpu_fan_speed(Dev d, unsigned i, long long *o) { u64 v = 0; int rc = ask(d, "fan", &v); *o = v; return rc; }
int amdsmi_get_gpu_fan_speed_max(Dev d, unsigned i, u64 *o) { return ask(d, "fan_max", o); }
struct count { u64 corrected, uncorrected, deferred, more[5]; };
int amdsmi_get_gpu_total_ecc_count(Dev d, struct count *c) { memset(c, 0, sizeof *c); int rc = ask(d, "ecc_unc", &c->uncorrected); look(d->i, "ecc_cor", &c->corrected); return rc; }
int amdsmi_get_gpu_bad_page_info(Dev d, unsigned *n, void *pages) { u64 v = 0; int rc = ask(d, "bad_pages", &v); *n = v; if (!rc && pages) memset(pages, 0, v * 24); return rc; }
struct process { char name[SIZE]; unsigned pid, pad; u64 mem; char engine[64], memory[64], container[SIZE]; unsigned units, more[11]; } __attribute__((packed));
int amdsmi_get_gpu_process_list(Dev d, unsigned *n, struct process *p) {
  u64 pid = 0, refused = 0; if (!look(d->i, "refuses", &refused) && refused) return 10;
  int rc = ask(d, "bdf", &pid); if (rc) return rc;
  *n = 0; if (!look(d->i, "pid", &pid) && pid) { memset(p, 0, sizeof *p); p->pid = pid; *n = 1; } return 0; }
