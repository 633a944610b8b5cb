/* Loaded before libc (LD_PRELOAD), so that every file operation of a process passes through here:
   Python's, and those of the libraries in C, C++ and Rust. After `watch`, operations on files and
   folders below the watched roots are counted and logged, and one of them can be made to fail.

   A line of the log: number, call, descriptor, flags or offset, result, path, second path; separated
   by tabs. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_DESCRIPTORS 4096
#define NEXT(name) \
    static __typeof__(&name) next; \
    if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* The numbers are those of `Effect` in preload.py. */
enum effect { NOTHING, FAIL, FULL_FROM_HERE, SHORT, CUT, FLIP, KILL };

static char roots[4][PATH_MAX];
static int num_roots, log_file = -1, data_file = -1;
static long count, chosen;
static enum effect effect;
static int error;
static char *names[MAX_DESCRIPTORS];
static char is_written[MAX_DESCRIPTORS], is_cut[MAX_DESCRIPTORS];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* `paths`: the roots, one per line. `number`: the operation to which `what` happens, 0 for none.
   `data`: a descriptor to which all written bytes are copied, or -1. */
void watch(const char *paths, int log, int data, long number, int what, int error_number) {
    num_roots = 0;
    while (*paths && num_roots < 4) {
        size_t length = strcspn(paths, "\n");
        snprintf(roots[num_roots++], PATH_MAX, "%.*s", (int)length, paths);
        paths += length + (paths[length] == '\n');
    }
    log_file = log, data_file = data, count = 0;
    chosen = number, effect = what, error = error_number;
}

static int is_watched(const char *path) {
    for (int i = 0; i < num_roots; i++) {
        size_t length = strlen(roots[i]);
        if (!strncmp(path, roots[i], length) && (path[length] == '/' || !path[length])) return 1;
    }
    return 0;
}

static const char *name_of(int file) {
    return num_roots && file >= 0 && file < MAX_DESCRIPTORS ? names[file] : NULL;
}

/* The absolute path of a name in an open folder. Returns 0 if it is not watched. */
static int resolve(int folder, const char *path, char *whole) {
    if (!num_roots || !path) return 0;
    if (path[0] == '/') snprintf(whole, PATH_MAX, "%s", path);
    else if (name_of(folder)) snprintf(whole, PATH_MAX, "%s/%s", name_of(folder), path);
    else return 0;
    return is_watched(whole);
}

static void remember(int file, const char *path, int writes) {
    if (file < 0 || file >= MAX_DESCRIPTORS) return;
    free(names[file]);
    names[file] = path ? strdup(path) : NULL;
    is_written[file] = writes, is_cut[file] = 0;
}

static int takes_space(const char *call) {
    return !strcmp(call, "create") || !strcmp(call, "write") || !strcmp(call, "mkdir") ||
           !strcmp(call, "link") || !strcmp(call, "statvfs");
}

/* Begins an operation. Returns what happens to it, and sets errno. Holds the lock until `end`. */
static enum effect begin(const char *call) {
    pthread_mutex_lock(&mutex);
    count++;
    enum effect now = count == chosen ? effect : NOTHING;
    if (effect == FULL_FROM_HERE)
        now = chosen && count >= chosen && takes_space(call) ? effect : NOTHING;
    if (now == KILL) kill(getpid(), SIGKILL);
    errno = now == FULL_FROM_HERE ? ENOSPC : error;
    return now;
}

static int fails(enum effect now) { return now == FAIL || now == FULL_FROM_HERE; }

static void log_bytes(int file, const void *bytes, size_t length) {
    NEXT(write);
    while (length > 0) {
        ssize_t written = next(file, bytes, length);
        if (written <= 0) abort();
        bytes = (const char *)bytes + written, length -= written;
    }
}

static void end(const char *call, int file, long long where, long long result, const char *path,
                const char *other) {
    int kept = errno;
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%ld\t%s\t%d\t%lld\t%lld\t%s\t%s\n", count, call, file,
                          where, result, path, other ? other : "");
    if (log_file >= 0) log_bytes(log_file, line, length);
    errno = kept;
    pthread_mutex_unlock(&mutex);
}

/* ---------------------------------------------------------------- opening and closing */

static int open_any(int folder, const char *path, int flags, mode_t mode) {
    NEXT(openat64);
    char whole[PATH_MAX];
    if (!resolve(folder, path, whole)) return next(folder, path, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY, file = -1;
    const char *call = writes ? "create" : "open";
    if (!fails(begin(call))) file = next(folder, path, flags, mode);
    remember(file, whole, writes);
    end(call, file, flags, file, whole, NULL);
    return file;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags), mode = va_arg(rest, mode_t), va_end(rest); \
    }

int open(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_any(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_any(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_any(folder, path, flags, mode); }

int close(int file) {
    NEXT(close);
    char *name = (char *)name_of(file);
    if (!name) return next(file);
    int writes = is_written[file], result;
    enum effect now = writes ? begin("close") : NOTHING;
    result = next(file); /* it is closed in any case */
    if (fails(now)) errno = error, result = -1;
    if (writes) end("close", file, 0, result, name, NULL);
    remember(file, NULL, 0);
    return result;
}

DIR *opendir(const char *path) {
    NEXT(opendir);
    char whole[PATH_MAX];
    if (!resolve(AT_FDCWD, path, whole)) return next(path);
    DIR *folder = fails(begin("opendir")) ? NULL : next(path);
    if (folder) remember(dirfd(folder), whole, 0);
    end("opendir", folder ? dirfd(folder) : -1, 0, folder ? 0 : -1, whole, NULL);
    return folder;
}

int closedir(DIR *folder) {
    NEXT(closedir);
    remember(dirfd(folder), NULL, 0);
    return next(folder);
}

struct dirent64 *readdir64(DIR *folder) {
    NEXT(readdir64);
    const char *name = name_of(dirfd(folder));
    if (!name) return next(folder);
    int before = errno; /* tells the end of the folder from an error */
    enum effect now = begin("readdir");
    if (!fails(now)) errno = before;
    struct dirent64 *entry = fails(now) ? NULL : next(folder);
    end("readdir", dirfd(folder), 0, entry ? 0 : -1, name, NULL);
    return entry;
}

/* ---------------------------------------------------------------- reading */

static size_t wanted(enum effect now, int file, size_t length) {
    if (is_cut[file]) return 0;
    if (now == CUT) is_cut[file] = 1;
    return (now == SHORT || now == CUT) && length > 1 ? length / 2 : length;
}

static ssize_t after_read(enum effect now, int file, char *bytes, ssize_t length) {
    if (now == FLIP && length > 0) bytes[length / 2] ^= 1;
    end("read", file, 0, length, name_of(file), NULL);
    return length;
}

ssize_t read(int file, void *bytes, size_t length) {
    NEXT(read);
    if (!name_of(file)) return next(file, bytes, length);
    enum effect now = begin("read");
    ssize_t got = fails(now) ? -1 : next(file, bytes, wanted(now, file, length));
    return after_read(now, file, bytes, got);
}

ssize_t pread64(int file, void *bytes, size_t length, off64_t offset) {
    NEXT(pread64);
    if (!name_of(file)) return next(file, bytes, length, offset);
    enum effect now = begin("read");
    ssize_t got = fails(now) ? -1 : next(file, bytes, wanted(now, file, length), offset);
    return after_read(now, file, bytes, got);
}

ssize_t readv(int file, const struct iovec *parts, int num) {
    NEXT(readv);
    if (!name_of(file)) return next(file, parts, num);
    enum effect now = begin("read");
    ssize_t got = fails(now) ? -1 : next(file, parts, num);
    return after_read(now, file, parts[0].iov_base, got);
}

static void *flipped(void *mapped, size_t length, int protection) {
    char *copy = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(copy, mapped, length);
    copy[length / 2] ^= 1;
    munmap(mapped, length);
    mprotect(copy, length, protection);
    return copy;
}

static void *map_any(void *next_function, void *address, size_t length, int protection, int flags,
                     int file, off64_t offset) {
    __typeof__(&mmap64) next = (__typeof__(&mmap64))next_function;
    if (!name_of(file)) return next(address, length, protection, flags, file, offset);
    enum effect now = begin("mmap");
    void *mapped = fails(now) ? MAP_FAILED
                              : next(address, length, protection, flags, file, offset);
    if (now == FLIP && mapped != MAP_FAILED) mapped = flipped(mapped, length, protection);
    end("mmap", file, offset, mapped == MAP_FAILED ? -1 : 0, name_of(file), NULL);
    return mapped;
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    NEXT(mmap);
    return map_any(next, address, length, protection, flags, file, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int file, off64_t offset) {
    NEXT(mmap64);
    return map_any(next, address, length, protection, flags, file, offset);
}

/* ---------------------------------------------------------------- writing */

static long long position(int file) {
    struct stat64 found;
    NEXT(fstat64);
    int appends = fcntl(file, F_GETFL) & O_APPEND;
    return appends && !next(file, &found) ? found.st_size : lseek64(file, 0, SEEK_CUR);
}

static ssize_t after_write(int file, long long where, const void *bytes, ssize_t length) {
    if (data_file >= 0 && length > 0) log_bytes(data_file, bytes, length);
    end("write", file, where, length, name_of(file), NULL);
    return length;
}

ssize_t write(int file, const void *bytes, size_t length) {
    NEXT(write);
    if (!name_of(file)) return next(file, bytes, length);
    long long where = position(file);
    enum effect now = begin("write");
    if (now == SHORT && length > 1) length /= 2;
    return after_write(file, where, bytes, fails(now) ? -1 : next(file, bytes, length));
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t offset) {
    NEXT(pwrite64);
    if (!name_of(file)) return next(file, bytes, length, offset);
    enum effect now = begin("write");
    if (now == SHORT && length > 1) length /= 2;
    return after_write(file, offset, bytes, fails(now) ? -1 : next(file, bytes, length, offset));
}

/* Writes the first part only, which is allowed, so that there is one path for all writes. */
ssize_t writev(int file, const struct iovec *parts, int num) {
    NEXT(writev);
    if (!name_of(file)) return next(file, parts, num);
    while (num > 1 && !parts->iov_len) parts++, num--;
    return write(file, parts->iov_base, parts->iov_len);
}

int ftruncate64(int file, off64_t length) {
    NEXT(ftruncate64);
    if (!name_of(file)) return next(file, length);
    int result = fails(begin("ftruncate")) ? -1 : next(file, length);
    end("ftruncate", file, length, result, name_of(file), NULL);
    return result;
}

static int sync_any(int (*next)(int), int file) {
    if (!name_of(file)) return next(file);
    int result = fails(begin("fsync")) ? -1 : next(file);
    end("fsync", file, 0, result, name_of(file), NULL);
    return result;
}

int fsync(int file) { NEXT(fsync); return sync_any(next, file); }
int fdatasync(int file) { NEXT(fdatasync); return sync_any(next, file); }

int flock(int file, int operation) {
    NEXT(flock);
    if (!name_of(file)) return next(file, operation);
    int result = fails(begin("flock")) ? -1 : next(file, operation);
    end("flock", file, operation, result, name_of(file), NULL);
    return result;
}

/* ---------------------------------------------------------------- names */

static int make_folder(int folder, const char *path, mode_t mode) {
    NEXT(mkdirat);
    char whole[PATH_MAX];
    if (!resolve(folder, path, whole)) return next(folder, path, mode);
    int result = fails(begin("mkdir")) ? -1 : next(folder, path, mode);
    end("mkdir", -1, 0, result, whole, NULL);
    return result;
}

int mkdir(const char *path, mode_t mode) { return make_folder(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return make_folder(folder, path, mode); }

static int remove_any(int folder, const char *path, int flags) {
    NEXT(unlinkat);
    char whole[PATH_MAX];
    if (!resolve(folder, path, whole)) return next(folder, path, flags);
    const char *call = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    int result = fails(begin(call)) ? -1 : next(folder, path, flags);
    end(call, -1, 0, result, whole, NULL);
    return result;
}

int unlink(const char *path) { return remove_any(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return remove_any(AT_FDCWD, path, AT_REMOVEDIR); }
int unlinkat(int folder, const char *path, int flags) { return remove_any(folder, path, flags); }

static int rename_any(int old_folder, const char *old, int new_folder, const char *new) {
    NEXT(renameat);
    char from[PATH_MAX], to[PATH_MAX];
    if (!resolve(old_folder, old, from) || !resolve(new_folder, new, to))
        return next(old_folder, old, new_folder, new);
    int result = fails(begin("rename")) ? -1 : next(old_folder, old, new_folder, new);
    end("rename", -1, 0, result, from, to);
    return result;
}

int rename(const char *old, const char *new) { return rename_any(AT_FDCWD, old, AT_FDCWD, new); }
int renameat(int old_folder, const char *old, int new_folder, const char *new) {
    return rename_any(old_folder, old, new_folder, new);
}

static int link_any(int old_folder, const char *old, int new_folder, const char *new, int flags) {
    NEXT(linkat);
    char from[PATH_MAX], to[PATH_MAX];
    if (!resolve(old_folder, old, from) || !resolve(new_folder, new, to))
        return next(old_folder, old, new_folder, new, flags);
    int result = fails(begin("link")) ? -1 : next(old_folder, old, new_folder, new, flags);
    end("link", -1, 0, result, from, to);
    return result;
}

int link(const char *old, const char *new) { return link_any(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int old_folder, const char *old, int new_folder, const char *new, int flags) {
    return link_any(old_folder, old, new_folder, new, flags);
}

/* ---------------------------------------------------------------- asking */

#define ASK(call, watched, path, question) \
    if (!(watched)) return question; \
    int result = fails(begin(call)) ? -1 : question; \
    end(call, -1, 0, result, path, NULL); \
    return result;
#define ASK_PATH(folder, path, question) \
    char whole[PATH_MAX]; \
    ASK("stat", resolve(folder, path, whole), whole, question)

int stat64(const char *path, struct stat64 *found) {
    NEXT(stat64);
    ASK_PATH(AT_FDCWD, path, next(path, found))
}
int lstat64(const char *path, struct stat64 *found) {
    NEXT(lstat64);
    ASK_PATH(AT_FDCWD, path, next(path, found))
}
int fstatat64(int folder, const char *path, struct stat64 *found, int flags) {
    NEXT(fstatat64);
    ASK_PATH(folder, path, next(folder, path, found, flags))
}
int fstat64(int file, struct stat64 *found) {
    NEXT(fstat64);
    ASK("stat", name_of(file), name_of(file), next(file, found))
}
/* The names of the same functions in libraries that were built with older versions of glibc. */
int __xstat64(int version, const char *path, struct stat64 *found) { (void)version; return stat64(path, found); }
int __lxstat64(int version, const char *path, struct stat64 *found) { (void)version; return lstat64(path, found); }
int __fxstat64(int version, int file, struct stat64 *found) { (void)version; return fstat64(file, found); }

int statx(int folder, const char *path, int flags, unsigned mask, struct statx *found) {
    NEXT(statx);
    if (!path[0] && name_of(folder)) {
        ASK("stat", 1, name_of(folder), next(folder, path, flags, mask, found))
    }
    ASK_PATH(folder, path, next(folder, path, flags, mask, found))
}

int statvfs64(const char *path, struct statvfs64 *found) {
    NEXT(statvfs64);
    char whole[PATH_MAX];
    if (!resolve(AT_FDCWD, path, whole)) return next(path, found);
    enum effect now = begin("statvfs");
    int result = now == FAIL ? -1 : next(path, found);
    if (now == FULL_FROM_HERE) found->f_bavail = found->f_bfree = 0;
    end("statvfs", -1, 0, result, whole, NULL);
    return result;
}
