/* Faults of a disk and of a process, at the n-th file operation below some folders.

Preloaded (LD_PRELOAD) into a process; idle until `faults_arm` is called or LUTHIER_FAULTS names a plan. A plan is a file
that all processes of a trial map: they count their operations in one order. Counted is what changes a file or a folder:
open for writing, write, fsync, truncate, rename, link, unlink, mkdir, rmdir, chmod. Clocks can be wrong as well. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 0, KILL = 1, KILL_IN_THE_MIDDLE = 2, FAIL_ONCE = 3, FAIL_FROM_HERE = 4, SIGNAL = 5, SIGNAL_TWICE = 6 };

struct plan {
    int64_t counted;  /* operations so far, of all processes */
    int64_t at;       /* the operation that is met, from 1 */
    int32_t what;     /* one of the above */
    int32_t number;   /* errno, or the signal */
    int64_t logged;   /* bytes of the log */
    char under[2][PATH_MAX];
    char log[1 << 20]; /* a line an operation: name, path */
};

static struct plan *plan;

int faults_arm(const char *path) {
    int descriptor = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (descriptor < 0) return -1;
    void *found = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    syscall(SYS_close, descriptor);
    if (found == MAP_FAILED) return -1;
    plan = found;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LUTHIER_FAULTS");
    if (path != NULL && *path) faults_arm(path);
}

static int is_under(const char *path) {
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(plan->under[i]);
        if (length && strncmp(path, plan->under[i], length) == 0 && (path[length] == '/' || path[length] == 0)) return 1;
    }
    return 0;
}

static int path_of(int folder, const char *path, char *full) {
    if (path[0] == '/') {
        snprintf(full, PATH_MAX, "%s", path);
        return 1;
    }
    char base[PATH_MAX], link[64];
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, base, sizeof base) < 0) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = readlink(link, base, sizeof base - 1);
        if (length <= 0) return 0;
        base[length] = 0;
    }
    return snprintf(full, PATH_MAX, "%s/%s", base, path) < PATH_MAX;
}

/* 0: go on; -1: fail with errno; 1: it is a write that is to end in the middle */
static int met(const char *name, const char *path) {
    int saved = errno;
    int64_t number = __sync_add_and_fetch(&plan->counted, 1);
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    int64_t place = __sync_fetch_and_add(&plan->logged, length);
    if (place + length < (int64_t)sizeof plan->log) memcpy(plan->log + place, line, length);
    errno = saved;
    if (plan->what == COUNT || number < plan->at || (number > plan->at && plan->what != FAIL_FROM_HERE)) return 0;
    switch (plan->what) {
    case KILL: raise(SIGKILL); break;
    case KILL_IN_THE_MIDDLE: return 1;
    case SIGNAL: kill(getpid(), plan->number); return 0;
    case SIGNAL_TWICE: kill(getpid(), plan->number); kill(getpid(), plan->number); return 0;
    }
    errno = plan->number;
    return -1;
}

static int met_at(const char *name, int folder, const char *path) {
    char full[PATH_MAX];
    if (plan == NULL || path == NULL || !path_of(folder, path, full) || !is_under(full)) return 0;
    return met(name, full);
}

static int met_of(const char *name, int descriptor) {
    if (plan == NULL) return 0;
    char link[64], full[PATH_MAX];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, full, sizeof full - 1);
    errno = saved;
    if (length <= 0) return 0;
    full[length] = 0;
    return is_under(full) ? met(name, full) : 0;
}

#define REAL(name) ({ static typeof(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
/* What is no write is over in one moment: its middle is the moment after it. */
#define DO(answer, call) ({ int how = (answer); how < 0 ? -1 : ({ typeof(call) done = (call); if (how > 0) raise(SIGKILL); done; }); })

static int writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }
#define MODE(flags) ({ mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } mode; })

int open(const char *path, int flags, ...) { mode_t m = MODE(flags); return DO(writes(flags) ? met_at("open", AT_FDCWD, path) : 0, REAL(open)(path, flags, m)); }
int open64(const char *path, int flags, ...) { mode_t m = MODE(flags); return DO(writes(flags) ? met_at("open", AT_FDCWD, path) : 0, REAL(open64)(path, flags, m)); }
int openat(int at, const char *path, int flags, ...) { mode_t m = MODE(flags); return DO(writes(flags) ? met_at("open", at, path) : 0, REAL(openat)(at, path, flags, m)); }
int openat64(int at, const char *path, int flags, ...) { mode_t m = MODE(flags); return DO(writes(flags) ? met_at("open", at, path) : 0, REAL(openat64)(at, path, flags, m)); }
int creat(const char *path, mode_t m) { return DO(met_at("open", AT_FDCWD, path), REAL(creat)(path, m)); }

ssize_t write(int to, const void *bytes, size_t size) {
    int how = met_of("write", to);
    if (how < 0) return -1;
    if (how == 0) return REAL(write)(to, bytes, size);
    REAL(write)(to, bytes, size / 2);
    raise(SIGKILL);
    return -1;
}
ssize_t pwrite64(int to, const void *bytes, size_t size, off64_t place) {
    int how = met_of("write", to);
    if (how < 0) return -1;
    if (how == 0) return REAL(pwrite64)(to, bytes, size, place);
    REAL(pwrite64)(to, bytes, size / 2, place);
    raise(SIGKILL);
    return -1;
}
ssize_t pwrite(int to, const void *bytes, size_t size, off_t place) { return pwrite64(to, bytes, size, place); }
ssize_t writev(int to, const struct iovec *parts, int count) { return DO(met_of("write", to), REAL(writev)(to, parts, count)); }
ssize_t sendfile(int to, int from, off_t *place, size_t size);
ssize_t sendfile64(int to, int from, off64_t *place, size_t size);
ssize_t sendfile(int to, int from, off_t *place, size_t size) { return DO(met_of("write", to), REAL(sendfile)(to, from, place, size)); }
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) { return DO(met_of("write", to), REAL(sendfile64)(to, from, place, size)); }
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) { return DO(met_of("write", to), REAL(copy_file_range)(from, a, to, b, size, flags)); }

int fsync(int to) { return DO(met_of("fsync", to), REAL(fsync)(to)); }
int fdatasync(int to) { return DO(met_of("fsync", to), REAL(fdatasync)(to)); }
int ftruncate(int to, off_t size) { return DO(met_of("truncate", to), REAL(ftruncate)(to, size)); }
int ftruncate64(int to, off64_t size) { return DO(met_of("truncate", to), REAL(ftruncate64)(to, size)); }
int truncate(const char *path, off_t size) { return DO(met_at("truncate", AT_FDCWD, path), REAL(truncate)(path, size)); }
int truncate64(const char *path, off64_t size) { return DO(met_at("truncate", AT_FDCWD, path), REAL(truncate64)(path, size)); }
int posix_fallocate(int to, off_t place, off_t size) { int how = met_of("allocate", to); return how < 0 ? errno : DO(how, REAL(posix_fallocate)(to, place, size)); }
int posix_fallocate64(int to, off64_t place, off64_t size) { int how = met_of("allocate", to); return how < 0 ? errno : DO(how, REAL(posix_fallocate64)(to, place, size)); }

int rename(const char *from, const char *to) { return DO(met_at("rename", AT_FDCWD, to), REAL(rename)(from, to)); }
int renameat(int a, const char *from, int b, const char *to) { return DO(met_at("rename", b, to), REAL(renameat)(a, from, b, to)); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return DO(met_at("rename", b, to), REAL(renameat2)(a, from, b, to, flags)); }
int link(const char *from, const char *to) { return DO(met_at("link", AT_FDCWD, to), REAL(link)(from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return DO(met_at("link", b, to), REAL(linkat)(a, from, b, to, flags)); }
int symlink(const char *from, const char *to) { return DO(met_at("link", AT_FDCWD, to), REAL(symlink)(from, to)); }
int unlink(const char *path) { return DO(met_at("unlink", AT_FDCWD, path), REAL(unlink)(path)); }
int unlinkat(int at, const char *path, int flags) { return DO(met_at("unlink", at, path), REAL(unlinkat)(at, path, flags)); }
int rmdir(const char *path) { return DO(met_at("rmdir", AT_FDCWD, path), REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { return DO(met_at("mkdir", AT_FDCWD, path), REAL(mkdir)(path, mode)); }
int mkdirat(int at, const char *path, mode_t mode) { return DO(met_at("mkdir", at, path), REAL(mkdirat)(at, path, mode)); }
int chmod(const char *path, mode_t mode) { return DO(met_at("chmod", AT_FDCWD, path), REAL(chmod)(path, mode)); }
int fchmod(int to, mode_t mode) { return DO(met_of("chmod", to), REAL(fchmod)(to, mode)); }
int fchmodat(int at, const char *path, mode_t mode, int flags) { return DO(met_at("chmod", at, path), REAL(fchmodat)(at, path, mode, flags)); }

/* LUTHIER_CLOCK: the time of day stands still, or leaps a day back or on whenever somebody looks; the other clocks count
   twentieths of a second, so that much happens at one moment. */
int clock_gettime(clockid_t id, struct timespec *found) {
    int done = syscall(SYS_clock_gettime, id, found);
    const char *how = getenv("LUTHIER_CLOCK");
    if (done || how == NULL || *how == 0) return done;
    static int64_t first, looks;
    if (id == CLOCK_REALTIME) {
        if (first == 0) first = found->tv_sec;
        int64_t days = __sync_add_and_fetch(&looks, 1);
        if (strcmp(how, "still") == 0) *found = (struct timespec){first, 0};
        if (strcmp(how, "back") == 0) found->tv_sec -= 86400 * (days % 9000);
        if (strcmp(how, "on") == 0) found->tv_sec += 86400 * (days % 9000);
    } else {
        found->tv_nsec -= found->tv_nsec % 50000000;
    }
    return done;
}
