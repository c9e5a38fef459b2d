/* Counts the calls by which a process tree changes what lies below one folder, and at one of them ends it or fails.

   Loaded by LD_PRELOAD. SURVIVAL_FOLDER is the watched folder (absolute, no links), SURVIVAL_CONTROL a file that holds
   `struct control`, shared by all processes of the tree and by whoever arms it (shim.py). Only what passes through the
   C library is seen: a page written through a mapping, as SQLite's shared memory, is not. */
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
#include <sys/uio.h>
#include <unistd.h>

enum { IDLE, COUNT, KILL, FAIL };            /* mode */
enum { CREATES, WRITES, REMOVES, SYNCS, SETS }; /* kind of a call: REMOVES and SETS need no room on the disk */

struct control {
    uint32_t mode, error; /* error: errno */
    uint32_t lasting;     /* whether all calls after the chosen one fail too */
    uint32_t shortened;   /* whether a write first succeeds by half */
    int64_t chosen, calls;
    int32_t group; /* of processes, that is killed */
    uint32_t dead; /* whoever is left ends itself at its next call */
    char what[1024]; /* the chosen call: name and path */
};

static struct control *control;
static char folder[PATH_MAX];
static size_t folder_length;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("SURVIVAL_CONTROL"), *watched = getenv("SURVIVAL_FOLDER");
    if (!file || !watched) return;
    int fd = open(file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    folder_length = strlen(strncpy(folder, watched, sizeof folder - 1));
    control = mapped;
}

static int below(const char *path) {
    return !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* Whether the file of a descriptor is watched; its path into `out`. */
static int fd_below(int fd, char *out) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    if (length < 0) return 0;
    out[length] = 0;
    return below(out);
}

/* Whether a path is watched; it, absolute, into `out`. */
static int path_below(int base, const char *path, char *out) {
    if (!path) return 0;
    if (path[0] == '/') return snprintf(out, PATH_MAX, "%s", path), below(path);
    if (base == AT_FDCWD ? !getcwd(out, PATH_MAX) : (fd_below(base, out), 0)) return 0;
    size_t length = strlen(out);
    snprintf(out + length, PATH_MAX - length, "/%s", path);
    return below(out);
}

/* Count a call; 0: let it pass, -1: write the half, else the errno with which it fails. */
static int act(const char *name, int kind, const char *path) {
    if (control->dead) kill(getpid(), SIGKILL);
    int64_t number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
    if (control->mode == COUNT || number < control->chosen) return 0;
    if (number == control->chosen) snprintf(control->what, sizeof control->what, "%s %s", name, path);
    if (control->mode == KILL) {
        control->dead = 1;
        kill(-control->group, SIGKILL);
        kill(getpid(), SIGKILL);
    }
    if (number > control->chosen && !control->lasting) return control->shortened && number == control->chosen + 1 &&
        kind == WRITES ? (int)control->error : 0;
    if (control->shortened && number == control->chosen && kind == WRITES) return -1;
    int full = control->error == ENOSPC || control->error == EDQUOT;
    if (full && (kind == REMOVES || kind == SETS)) return control->lasting ? 0 : EIO; /* a full disk lets them pass */
    return (int)control->error;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ARMED (control && control->mode != IDLE)
#define FAILING(watched, kind) (ARMED && (watched) && (e = act(__func__, kind, at)) != 0)
#define ON_PATH(base, path, kind) do { char at[PATH_MAX]; int e; \
    if (FAILING(path_below(base, path, at), kind)) return errno = e < 0 ? EIO : e, -1; } while (0)
#define ON_FD(fd, kind) do { char at[PATH_MAX]; int e; \
    if (FAILING(fd_below(fd, at), kind)) return errno = e < 0 ? EIO : e, -1; } while (0)

static int changes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC); }

static int open_kind(int base, const char *path, int flags) {
    return (flags & O_CREAT) && faccessat(base, path, F_OK, AT_SYMLINK_NOFOLLOW) ? CREATES : SETS;
}

#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); \
    mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) int name(const char *path, int flags, ...) { REAL(name); MODE \
    if (changes(flags)) { ON_PATH(AT_FDCWD, path, open_kind(AT_FDCWD, path, flags)); } \
    return real(path, flags, mode); }
#define OPENAT(name) int name(int base, const char *path, int flags, ...) { REAL(name); MODE \
    if (changes(flags)) { ON_PATH(base, path, open_kind(base, path, flags)); } \
    return real(base, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

/* What fortified programs call where no mode is given; not declared in any header. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int base, const char *path, int flags);
int __openat64_2(int base, const char *path, int flags);
int __open_2(const char *path, int flags) { return open(path, flags); }
int __open64_2(const char *path, int flags) { return open64(path, flags); }
int __openat_2(int base, const char *path, int flags) { return openat(base, path, flags); }
int __openat64_2(int base, const char *path, int flags) { return openat64(base, path, flags); }

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Streams write by calls inside the C library, which can't be seen: what is counted is the call on the stream. */
#define FOPEN(name) FILE *name(const char *path, const char *mode) { REAL(name); char at[PATH_MAX]; int e; \
    if (FAILING(strpbrk(mode, "wa+") && path_below(AT_FDCWD, path, at), open_kind(AT_FDCWD, path, O_CREAT))) \
        return errno = e < 0 ? EIO : e, NULL; \
    return real(path, mode); }
FOPEN(fopen) FOPEN(fopen64)
size_t fwrite(const void *data, size_t size, size_t count, FILE *stream) {
    REAL(fwrite); char at[PATH_MAX]; int e;
    if (FAILING(fd_below(fileno(stream), at), WRITES)) return errno = e < 0 ? EIO : e, 0;
    return real(data, size, count, stream);
}

/* The first half of a write goes through, the rest is left to the caller. */
#define HALVED(call) do { char at[PATH_MAX]; int e; if (FAILING(fd_below(fd, at), WRITES)) { \
    if (e > 0 || length < 2) return errno = e > 0 ? e : (int)control->error, -1; \
    length /= 2; } return call; } while (0)
ssize_t write(int fd, const void *data, size_t length) { REAL(write); HALVED(real(fd, data, length)); }
#define PWRITE(name, offset_type) ssize_t name(int fd, const void *data, size_t length, offset_type offset) { \
    REAL(name); HALVED(real(fd, data, length, offset)); }
PWRITE(pwrite, off_t) PWRITE(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev); ON_FD(fd, WRITES);
    return real(fd, parts, count);
}
#define PWRITEV(name, offset_type) ssize_t name(int fd, const struct iovec *parts, int count, offset_type offset) { \
    REAL(name); ON_FD(fd, WRITES); return real(fd, parts, count, offset); }
PWRITEV(pwritev, off_t) PWRITEV(pwritev64, off64_t)
#define SENDFILE(name, offset_type) ssize_t name(int out, int in, offset_type *offset, size_t length); \
    ssize_t name(int out, int in, offset_type *offset, size_t length) { \
    REAL(name); ON_FD(out, WRITES); return real(out, in, offset, length); }
SENDFILE(sendfile, off_t) SENDFILE(sendfile64, off64_t)
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    REAL(copy_file_range); ON_FD(out, WRITES); return real(in, from, out, to, length, flags);
}
#define ALLOCATE(name, offset_type) int name(int fd, int mode, offset_type at_, offset_type length) { \
    REAL(name); ON_FD(fd, WRITES); return real(fd, mode, at_, length); }
ALLOCATE(fallocate, off_t) ALLOCATE(fallocate64, off64_t)
#define POSIX_ALLOCATE(name, offset_type) int name(int fd, offset_type from, offset_type length) { REAL(name); \
    char at[PATH_MAX]; int e; if (FAILING(fd_below(fd, at), WRITES)) return e < 0 ? EIO : e; \
    return real(fd, from, length); }
POSIX_ALLOCATE(posix_fallocate, off_t) POSIX_ALLOCATE(posix_fallocate64, off64_t)

#define SET_LENGTH(name, offset_type) int name(int fd, offset_type length) { \
    REAL(name); ON_FD(fd, WRITES); return real(fd, length); }
SET_LENGTH(ftruncate, off_t) SET_LENGTH(ftruncate64, off64_t)
#define TRUNCATE(name, offset_type) int name(const char *path, offset_type length) { \
    REAL(name); ON_PATH(AT_FDCWD, path, WRITES); return real(path, length); }
TRUNCATE(truncate, off_t) TRUNCATE(truncate64, off64_t)
int fsync(int fd) { REAL(fsync); ON_FD(fd, SYNCS); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); ON_FD(fd, SYNCS); return real(fd); }

int rename(const char *old, const char *new) { REAL(rename); ON_PATH(AT_FDCWD, new, CREATES); return real(old, new); }
int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat); ON_PATH(to, new, CREATES); return real(from, old, to, new);
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    REAL(renameat2); ON_PATH(to, new, CREATES); return real(from, old, to, new, flags);
}
int link(const char *old, const char *new) { REAL(link); ON_PATH(AT_FDCWD, new, CREATES); return real(old, new); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(linkat); ON_PATH(to, new, CREATES); return real(from, old, to, new, flags);
}
int symlink(const char *old, const char *new) { REAL(symlink); ON_PATH(AT_FDCWD, new, CREATES); return real(old, new); }
int symlinkat(const char *old, int to, const char *new) {
    REAL(symlinkat); ON_PATH(to, new, CREATES); return real(old, to, new);
}
int mkdir(const char *path, mode_t mode) { REAL(mkdir); ON_PATH(AT_FDCWD, path, CREATES); return real(path, mode); }
int mkdirat(int base, const char *path, mode_t mode) {
    REAL(mkdirat); ON_PATH(base, path, CREATES);
    return real(base, path, mode);
}
int mkfifo(const char *path, mode_t mode) { REAL(mkfifo); ON_PATH(AT_FDCWD, path, CREATES); return real(path, mode); }
int mknod(const char *path, mode_t mode, dev_t device) {
    REAL(mknod); ON_PATH(AT_FDCWD, path, CREATES);
    return real(path, mode, device);
}

int unlink(const char *path) { REAL(unlink); ON_PATH(AT_FDCWD, path, REMOVES); return real(path); }
int unlinkat(int base, const char *path, int flags) {
    REAL(unlinkat); ON_PATH(base, path, REMOVES);
    return real(base, path, flags);
}
int rmdir(const char *path) { REAL(rmdir); ON_PATH(AT_FDCWD, path, REMOVES); return real(path); }
int remove(const char *path) { REAL(remove); ON_PATH(AT_FDCWD, path, REMOVES); return real(path); }

int chmod(const char *path, mode_t mode) { REAL(chmod); ON_PATH(AT_FDCWD, path, SETS); return real(path, mode); }
int fchmod(int fd, mode_t mode) { REAL(fchmod); ON_FD(fd, SETS); return real(fd, mode); }
int fchmodat(int base, const char *path, mode_t mode, int flags) {
    REAL(fchmodat); ON_PATH(base, path, SETS);
    return real(base, path, mode, flags);
}
int utimensat(int base, const char *path, const struct timespec times[2], int flags) {
    REAL(utimensat);
    ON_PATH(base, path, SETS);
    return real(base, path, times, flags);
}
int futimens(int fd, const struct timespec times[2]) { REAL(futimens); ON_FD(fd, SETS); return real(fd, times); }
