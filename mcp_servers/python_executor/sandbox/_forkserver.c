/* The part of the fork server that Python cannot do well. Linux, x86-64 and AArch64.
 *
 *   flatten(proc_fd)      move the process image into a few huge-page mappings at the same addresses: fork() then copies
 *                         a dozen page-table entries instead of thousands
 *   fill_heap()           use up the free chunks of malloc, so that children allocate from fresh, contiguous pages
 *   immortalize(objects)  stop reference counts from changing (CPython 3.12+), and with them the pages they lie on
 *   serve(...)            the loop that forks, confines and reaps children; returns only in a child
 *
 * `serve` makes raw system calls and keeps its state in one small mapping of its own: the parent never writes to a page
 * that its children share, so every fork sees the image as `flatten` left it. glibc's fork() and CPython's fork hooks are
 * left out; that is sound because the process has one thread.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

/* ------------------------------------------------------------------------------------------------ the process image */

#define HUGE_PAGE (2UL << 20)
#define ROUND_DOWN(x) ((x) & ~(HUGE_PAGE - 1))
#define ROUND_UP(x) ROUND_DOWN((x) + HUGE_PAGE - 1)
#define MAX_MAPPINGS 4000
#define MAX_GAP (64UL << 20)

typedef struct {
    uintptr_t start, end;
    int readable, movable;
} mapping;

/* The lines of /proc/self/maps. Stack, vdso and shared mappings stay where they are. */
static int read_mappings(int proc_fd, mapping *out)
{
    int fd = openat(proc_fd, "self/maps", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    FILE *file = fdopen(fd, "r");
    if (file == NULL) {
        close(fd);
        return -1;
    }
    char line[4096], flags[8], name[4096];
    int count = 0;
    while (count < MAX_MAPPINGS && fgets(line, sizeof line, file)) {
        unsigned long start, end;
        name[0] = 0;
        if (sscanf(line, "%lx-%lx %7s %*s %*s %*s %4000s", &start, &end, flags, name) < 3)
            continue;
        int special = name[0] == '[' && strcmp(name, "[heap]") != 0 && strncmp(name, "[anon", 5) != 0;
        out[count++] = (mapping){start, end, flags[0] == 'r', flags[3] == 'p' && !special};
    }
    fclose(file);
    return count;
}

/* Copy [start, end) into huge pages and put the copy in its place. The code that runs may itself lie there: the bytes are
 * the same, and mremap exchanges them at once. */
static int flatten_range(const mapping *parts, int count, uintptr_t start, uintptr_t end)
{
    size_t length = end - start, offset = start & (HUGE_PAGE - 1);
    size_t reserve = ROUND_UP(offset + length) + HUGE_PAGE;
    char *area = mmap(NULL, reserve, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return -1;
    char *base = (char *)ROUND_UP((uintptr_t)area), *copy = base + offset;
    madvise(base, ROUND_UP(offset + length), MADV_HUGEPAGE);
    for (int i = 0; i < count; i++)
        if (parts[i].readable)
            memcpy(copy + (parts[i].start - start), (void *)parts[i].start, parts[i].end - parts[i].start);
    __builtin___clear_cache(copy, copy + length);
    if (mremap(copy, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start) == MAP_FAILED) {
        munmap(area, reserve);
        return -1;
    }
    if (copy > area)
        munmap(area, copy - area);
    if (copy + length < area + reserve)
        munmap(copy + length, area + reserve - (copy + length));
    madvise((void *)start, length, MADV_HUGEPAGE);
    return 0;
}

static PyObject *forkserver_flatten(PyObject *self, PyObject *args)
{
    int proc_fd, flattened = 0;
    if (!PyArg_ParseTuple(args, "i", &proc_fd))
        return NULL;
    mapping *all = mmap(NULL, MAX_MAPPINGS * sizeof(mapping), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    int count = read_mappings(proc_fd, all);
    if (count < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        munmap(all, MAX_MAPPINGS * sizeof(mapping));
        return NULL;
    }
    uintptr_t below = HUGE_PAGE; /* what lies under the group is not ours to cover */
    for (int first = 0; first < count;) {
        if (!all[first].movable) {
            below = all[first++].end;
            continue;
        }
        int last = first;
        while (last + 1 < count && all[last + 1].movable && all[last + 1].start - all[last].end < MAX_GAP)
            last++;
        uintptr_t start = all[first].start, end = all[last].end;
        uintptr_t above = last + 1 < count ? all[last + 1].start : (1UL << 47) - HUGE_PAGE;
        if (ROUND_DOWN(start) >= below)
            start = ROUND_DOWN(start);
        if (ROUND_UP(end) <= above)
            end = ROUND_UP(end);
        if (flatten_range(all + first, last - first + 1, start, end) == 0)
            flattened++;
        below = end;
        first = last + 1;
    }
    munmap(all, MAX_MAPPINGS * sizeof(mapping));
    return PyLong_FromLong(flattened);
}

static PyObject *forkserver_fill_heap(PyObject *self, PyObject *unused)
{
    size_t total = 0;
    void *top = malloc(100 * 1024); /* larger than what is filled below: it comes from the end of the heap */
    uintptr_t end = (uintptr_t)top;
    free(top);
    for (size_t size = 96 * 1024; size >= 24;) {
        void *chunk = malloc(size); /* kept for ever: that is the purpose */
        if (chunk == NULL)
            break;
        if ((uintptr_t)chunk >= end) {
            free(chunk);
            size = size > 2048 ? size - size / 8 : size > 512 ? size - 64 : size - 16;
            continue;
        }
        total += size;
    }
    return PyLong_FromSize_t(total);
}

#if PY_VERSION_HEX >= 0x030c0000

typedef struct {
    PyObject **items;
    size_t count, room;
} object_stack;

static int visit_object(PyObject *object, void *arg)
{
    object_stack *stack = arg;
    if (object == NULL || (int32_t)object->ob_refcnt < 0)
        return 0;
    if (stack->count == stack->room) {
        size_t room = stack->room ? stack->room * 2 : 1 << 16;
        PyObject **items = realloc(stack->items, room * sizeof *items);
        if (items == NULL)
            return -1;
        stack->items = items, stack->room = room;
    }
#if PY_VERSION_HEX >= 0x030e0000
    object->ob_refcnt = (uint32_t)(3UL << 30);
#else
    object->ob_refcnt = 0xFFFFFFFFL;
#endif
    stack->items[stack->count++] = object;
    return 0;
}

static PyObject *forkserver_immortalize(PyObject *self, PyObject *roots)
{
    object_stack stack = {0};
    size_t seen = 0;
    if (!PyList_Check(roots)) {
        PyErr_SetString(PyExc_TypeError, "a list of objects is needed");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(roots); i++)
        visit_object(PyList_GET_ITEM(roots, i), &stack);
    while (stack.count) {
        PyObject *object = stack.items[--stack.count];
        PyTypeObject *type = Py_TYPE(object);
        seen++;
        visit_object((PyObject *)type, &stack);
        if (PyCode_Check(object)) { /* not tracked by the collector */
            PyCodeObject *code = (PyCodeObject *)object;
            PyObject *parts[] = {code->co_consts, code->co_names, code->co_filename, code->co_name, code->co_qualname,
                                 code->co_linetable, code->co_exceptiontable, code->co_localsplusnames,
                                 code->co_localspluskinds};
            for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
                visit_object(parts[i], &stack);
        }
        if (PyType_Check(object) && !(((PyTypeObject *)object)->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
            PyTypeObject *fixed = (PyTypeObject *)object;
            visit_object(fixed->tp_dict, &stack);
            visit_object(fixed->tp_bases, &stack);
            visit_object(fixed->tp_mro, &stack);
            visit_object((PyObject *)fixed->tp_base, &stack);
        }
        if (type->tp_traverse && PyObject_IS_GC(object)) /* a static type has tp_traverse and no GC head */
            type->tp_traverse(object, visit_object, &stack);
        if (PyTuple_Check(object)) /* the collector forgets tuples and dicts of plain values */
            for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); i++)
                visit_object(PyTuple_GET_ITEM(object, i), &stack);
        if (PyDict_Check(object)) {
            PyObject *key, *value;
            Py_ssize_t position = 0;
            while (PyDict_Next(object, &position, &key, &value)) {
                visit_object(key, &stack);
                visit_object(value, &stack);
            }
        }
    }
    free(stack.items);
    return PyLong_FromSize_t(seen);
}

#else

static PyObject *forkserver_immortalize(PyObject *self, PyObject *roots)
{
    return PyLong_FromLong(0); /* 3.11 has no immortal objects */
}

#endif

/* --------------------------------------------------------------------------------------------------------- the loop */

#if defined(__x86_64__)
static inline long raw_syscall(long n, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long raw_syscall(long n, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = 0;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}
#else
#error "the fork server's helper knows x86-64 and AArch64"
#endif
#define CALL(n, a, b, c, d, e) raw_syscall((long)(n), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

#define MAX_SLOTS 512
#define MAX_CGROUPS 2
#define MAX_FILTER 128
#define MAX_FAILURES 3
#define KERNEL_SIGSET_BYTES 8

enum { /* how a child is confined; forkserver.py has the same */
    NEW_PID = 1,      /* a pid namespace of its own */
    CHROOT = 2,       /* into the slot's root, with a tmpfs at box */
    SET_UID = 4,      /* to uid_base + slot */
    DROP_CAPS = 8,    /* where there is one uid only */
    LANDLOCK = 16,
    OWN_FILTER = 32,  /* a second seccomp filter, with the child's own pid in it */
};

typedef struct { uint32_t op, id, slot, arg; } command;   /* from the pool, see wire.py: Op */
typedef struct {                                           /* to the pool, with three descriptors when new_id is set */
    uint32_t exit_id, slot, new_id;
    int32_t status, error;
    uint32_t minor_faults;
    uint64_t user_us, system_us, max_rss_kb;
} report;

typedef struct {
    int pid, ruleset, cgroups[MAX_CGROUPS], clean, allowed;
    uint32_t id;
    char root[104], box[104], work[112], tmp[112];
    uint64_t free_files, free_blocks;
    struct timespec box_changed, work_changed, tmp_changed;
} slot;

typedef struct {
    uint32_t flags, uid_base, landlock_access, slots, live, target, next_id, trash, max_open_files, max_processes;
    int ctl, signals, outputs, pid;
    char tmpfs_options[128];
    slot slot[MAX_SLOTS];
    struct sock_filter filter[MAX_FILTER];
    uint8_t pid_places[MAX_FILTER];
    uint32_t filter_length, pid_count;
    /* scratch, here and not on a page that children share */
    struct pollfd polled[2];
    command command;
    report report;
    struct msghdr message;
    struct iovec part;
    char control[CMSG_SPACE(3 * sizeof(int))];
    struct signalfd_siginfo signal;
    struct rusage usage;
    struct statfs filesystem;
    struct stat stat;
    char name[160], trash_folder[112];
} server;

static void changed_at(server *s, const char *path, struct timespec *when)
{
    if (CALL(SYS_newfstatat, AT_FDCWD, path, &s->stat, 0, 0) == 0)
        *when = s->stat.st_ctim;
    else
        *when = (struct timespec){0, 0};
}

static int same_time(struct timespec a, struct timespec b)
{
    return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

/* Whether anything in the box differs from how it was handed out. The change time alone would miss what happened within
 * a tick of the clock on kernels before 6.13: the file system's own counts do not. */
static int box_is_clean(server *s, slot *it)
{
    struct timespec when;
    if (!it->clean || !(s->flags & CHROOT))
        return 0;
    if (CALL(SYS_statfs, it->box, &s->filesystem, 0, 0, 0) != 0 || s->filesystem.f_ffree != it->free_files ||
        s->filesystem.f_bfree != it->free_blocks)
        return 0;
    changed_at(s, it->box, &when);
    if (!same_time(when, it->box_changed))
        return 0;
    changed_at(s, it->work, &when);
    if (!same_time(when, it->work_changed))
        return 0;
    changed_at(s, it->tmp, &when);
    return same_time(when, it->tmp_changed);
}

static long make_folders(slot *it)
{
    long failed = CALL(SYS_mkdirat, AT_FDCWD, it->work, 0777, 0, 0);
    if (failed == 0)
        failed = CALL(SYS_mkdirat, AT_FDCWD, it->tmp, 01777, 0, 0);
    return failed;
}

static long allow_box(server *s, slot *it)
{
    struct { uint64_t access; int32_t fd; } __attribute__((packed)) rule;
    if (it->ruleset < 0)
        return 0;
    rule.access = s->landlock_access;
    rule.fd = CALL(SYS_openat, AT_FDCWD, it->box, O_PATH | O_CLOEXEC, 0, 0);
    if (rule.fd < 0)
        return rule.fd;
    long failed = CALL(445 /* landlock_add_rule */, it->ruleset, 1, &rule, 0, 0);
    CALL(SYS_close, rule.fd, 0, 0, 0, 0);
    return failed;
}

/* Where a box is no mount: only work and tmp in it are its child's to write to. */
static void close_box(server *s, slot *it, int mode)
{
    if (!(s->flags & CHROOT))
        CALL(SYS_fchmodat, AT_FDCWD, it->box, mode, 0, 0);
}

/* Put a folder where the pool deletes it, and no ruleset reaches. */
static void throw_away(server *s, const char *path)
{
    size_t n = 0;
    for (; s->trash_folder[n]; n++)
        s->name[n] = s->trash_folder[n];
    s->name[n++] = '/';
    for (uint32_t number = ++s->trash; number; number /= 10)
        s->name[n++] = '0' + number % 10;
    s->name[n] = 0;
    CALL(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, s->name, 0);
}

/* What was in a box goes: with its mount, or, where we may not mount, to be deleted by the pool; the box itself then
 * stays, and with it the one rule that lets its own child in. */
static void empty_box(server *s, slot *it)
{
    it->clean = 0;
    if (s->flags & CHROOT) {
        CALL(SYS_umount2, it->box, MNT_DETACH, 0, 0, 0);
        return;
    }
    close_box(s, it, 0700);
    throw_away(s, it->work);
    throw_away(s, it->tmp);
}

/* Hand out an empty box. */
static long reset_box(server *s, slot *it)
{
    long failed = 0;
    if (box_is_clean(s, it))
        return 0;
    empty_box(s, it);
    if (s->flags & CHROOT)
        failed = CALL(SYS_mount, "tmpfs", it->box, "tmpfs", MS_NOSUID | MS_NODEV, s->tmpfs_options);
    if (failed == 0)
        failed = make_folders(it);
    close_box(s, it, 0500);
    if (failed == 0 && (s->flags & CHROOT || !it->allowed))
        failed = allow_box(s, it);
    if (failed != 0)
        return failed;
    if (s->flags & CHROOT) {
        CALL(SYS_statfs, it->box, &s->filesystem, 0, 0, 0);
        it->free_files = s->filesystem.f_ffree;
        it->free_blocks = s->filesystem.f_bfree;
        changed_at(s, it->box, &it->box_changed);
        changed_at(s, it->work, &it->work_changed);
        changed_at(s, it->tmp, &it->tmp_changed);
    }
    it->clean = it->allowed = 1;
    return 0;
}

/* In the child: put on what was not inherited. Any failure ends it before it runs anything. */
static void confine(server *s, slot *it, uint32_t number, int channel, int out, int err)
{
    long failed = 0;
    for (int i = 0; i < MAX_CGROUPS; i++)
        if (it->cgroups[i] >= 0)
            failed |= CALL(SYS_write, it->cgroups[i], "0", 1, 0, 0) != 1;
    if (s->flags & CHROOT)
        failed |= CALL(SYS_chroot, it->root, 0, 0, 0, 0);
    failed |= CALL(SYS_chdir, s->flags & CHROOT ? "/box/work" : it->work, 0, 0, 0, 0);
    CALL(SYS_close, 0, 0, 0, 0, 0); /* or its flags would pass from one child to the next */
    failed |= CALL(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY, 0, 0) != 0;
    if (s->flags & SET_UID) {
        long uid = s->uid_base + number;
        failed |= CALL(SYS_setresgid, uid, uid, uid, 0, 0);
        failed |= CALL(SYS_setresuid, uid, uid, uid, 0, 0);
    }
    if (s->flags & DROP_CAPS) {
        struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
        struct __user_cap_data_struct none[2] = {{0}};
        failed |= CALL(SYS_capset, &header, none, 0, 0, 0);
    }
    if (s->flags & LANDLOCK)
        failed |= CALL(446 /* landlock_restrict_self */, it->ruleset, 0, 0, 0, 0);
    failed |= CALL(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (!(s->flags & NEW_PID)) /* a namespace ends with its first process; without one the parent may be dead already */
        failed |= CALL(SYS_getppid, 0, 0, 0, 0, 0) != s->pid;
    if (s->flags & OWN_FILTER) {
        uint32_t pid = CALL(SYS_getpid, 0, 0, 0, 0, 0);
        for (uint32_t i = 0; i < s->pid_count; i++)
            s->filter[s->pid_places[i]].k = pid;
        struct sock_fprog program = {s->filter_length, s->filter};
        failed |= CALL(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program, 0, 0);
    }
    struct rlimit files = {s->max_open_files, s->max_open_files}, processes = {s->max_processes, s->max_processes};
    failed |= CALL(SYS_prlimit64, 0, RLIMIT_NOFILE, &files, 0, 0);
    if (s->max_processes)
        failed |= CALL(SYS_prlimit64, 0, RLIMIT_NPROC, &processes, 0, 0);
    CALL(SYS_umask, 022, 0, 0, 0, 0);
    /* 0 is /dev/null; 1 and 2 the call's output; 3 its channel; nothing else stays open */
    failed |= CALL(SYS_dup3, out, 1, 0, 0, 0) != 1;
    failed |= CALL(SYS_dup3, err, 2, 0, 0, 0) != 2;
    failed |= CALL(SYS_dup3, channel, 3, 0, 0, 0) != 3;
    CALL(SYS_close_range, 4, ~0U, 0, 0, 0);
    uint64_t none = 0;
    CALL(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, KERNEL_SIGSET_BYTES, 0);
    if (failed)
        CALL(SYS_exit_group, 99, 0, 0, 0, 0);
}

static void send_report(server *s, int channel, int out, int err)
{
    s->part = (struct iovec){&s->report, sizeof s->report};
    s->message = (struct msghdr){0};
    s->message.msg_iov = &s->part;
    s->message.msg_iovlen = 1;
    if (channel >= 0) {
        s->message.msg_control = s->control;
        s->message.msg_controllen = sizeof s->control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&s->message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(3 * sizeof(int));
        int *fds = (int *)CMSG_DATA(header);
        fds[0] = channel, fds[1] = out, fds[2] = err;
    }
    CALL(SYS_sendmsg, s->ctl, &s->message, MSG_NOSIGNAL, 0, 0);
}

/* Fork into a slot. Returns 1 in the child; in the parent 0, after the report went out with the child's descriptors. */
static int spawn(server *s, uint32_t number)
{
    slot *it = &s->slot[number];
    int pair[2] = {-1, -1}, output[2] = {-1, -1};
    long failed = reset_box(s, it);
    if (failed == 0)
        failed = CALL(SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair, 0);
    for (int i = 0; i < 2 && failed == 0; i++) {
        output[i] = CALL(SYS_openat, s->outputs, ".", O_TMPFILE | O_EXCL | O_RDWR | O_APPEND | O_CLOEXEC, 0600, 0);
        failed = output[i] < 0 ? output[i] : 0;
    }
    s->report.new_id = 0;
    if (failed == 0) {
        long pid = CALL(SYS_clone, (s->flags & NEW_PID ? CLONE_NEWPID : 0) | SIGCHLD, 0, 0, 0, 0);
        if (pid == 0) {
            confine(s, it, number, pair[1], output[0], output[1]);
            return 1;
        }
        failed = pid < 0 ? pid : 0;
        if (failed == 0) {
            it->pid = pid;
            it->id = s->report.new_id = s->next_id++;
            s->live++;
            CALL(SYS_fcntl, pair[0], F_SETFL, O_NONBLOCK, 0, 0);
        }
    }
    s->report.slot = number;
    s->report.error = -failed;
    send_report(s, failed == 0 ? pair[0] : -1, output[0], output[1]);
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0)
            CALL(SYS_close, pair[i], 0, 0, 0, 0);
        if (output[i] >= 0)
            CALL(SYS_close, output[i], 0, 0, 0, 0);
    }
    return 0;
}

static void signal_child(server *s, const command *it, int number)
{
    if (it->slot < s->slots && s->slot[it->slot].pid > 0 && s->slot[it->slot].id == it->id)
        CALL(SYS_kill, s->slot[it->slot].pid, number, 0, 0, 0);
}

/* Returns 1 in a new child, 0 when nothing is left to do, and does not return when the pool is gone. */
static int obey(server *s)
{
    long got = CALL(SYS_recvfrom, s->ctl, &s->command, sizeof(command), MSG_DONTWAIT, 0);
    if (got == -EAGAIN || got == -EINTR)
        return 0;
    if (got <= 0) {
        for (uint32_t i = 0; i < s->slots; i++)
            if (s->slot[i].pid > 0)
                CALL(SYS_kill, s->slot[i].pid, SIGKILL, 0, 0, 0);
        CALL(SYS_exit_group, 0, 0, 0, 0, 0);
    }
    command *it = &s->command;
    if (it->op == 'K')
        signal_child(s, it, SIGKILL);
    if (it->op == 'I')
        signal_child(s, it, SIGALRM);
    if (it->op == 'S' || it->op == 'C')
        signal_child(s, it, it->op == 'S' ? SIGSTOP : SIGCONT);
    if (it->op == 'T')
        s->target = it->arg < s->slots ? it->arg : s->slots;
    return 0;
}

/* Reap whoever ended; 1 in a child forked in its place. */
static int reap(server *s)
{
    for (;;) {
        int status = 0;
        uint32_t number = 0;
        long pid = CALL(SYS_wait4, -1, &status, WNOHANG, &s->usage, 0);
        if (pid <= 0)
            return 0;
        while (number < s->slots && s->slot[number].pid != pid)
            number++;
        if (number == s->slots)
            continue; /* an orphan of a child without a pid namespace */
        s->slot[number].pid = 0;
        s->live--;
        struct rusage *used = &s->usage;
        s->report = (report){
            .exit_id = s->slot[number].id,
            .slot = number,
            .status = status,
            .minor_faults = used->ru_minflt,
            .user_us = used->ru_utime.tv_sec * 1000000ULL + used->ru_utime.tv_usec,
            .system_us = used->ru_stime.tv_sec * 1000000ULL + used->ru_stime.tv_usec,
            .max_rss_kb = used->ru_maxrss,
        };
        if (s->live >= s->target) {
            if (!box_is_clean(s, &s->slot[number])) /* nobody may come for long, and it is memory */
                empty_box(s, &s->slot[number]);
            send_report(s, -1, -1, -1);
        } else if (spawn(s, number))
            return 1;
    }
}

/* Fork until as many live as shall; 1 in a child. */
static int grow(server *s)
{
    int failures = 0;
    for (uint32_t number = 0; number < s->slots && s->live < s->target && failures < MAX_FAILURES; number++) {
        if (s->slot[number].pid > 0)
            continue;
        s->report = (report){0};
        if (spawn(s, number))
            return 1;
        failures += s->report.error != 0;
    }
    if (failures) /* the pool hears of it, and asks again */
        s->target = s->live;
    return 0;
}

/* Fork; 1 in the child; 0 in the parent, when the child has ended. Meanwhile the parent writes to nothing that is shared. */
static PyObject *forkserver_fork_and_wait(PyObject *self, PyObject *unused)
{
    long pid = CALL(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid > 0) {
        int status;
        while (CALL(SYS_wait4, pid, &status, 0, 0, 0) == -EINTR)
            ;
    }
    return PyBool_FromLong(pid == 0);
}

static PyObject *forkserver_serve(PyObject *self, PyObject *args)
{
    int ctl, outputs;
    unsigned flags, uid_base, landlock_access, max_open_files, max_processes;
    const char *tmpfs_options, *trash_folder, *filter, *places, *pages;
    Py_ssize_t filter_bytes, place_count, page_bytes;
    PyObject *slots;
    if (!PyArg_ParseTuple(args, "iiIIIssO!y#y#IIy#", &ctl, &outputs, &flags, &uid_base, &landlock_access, &tmpfs_options,
                          &trash_folder, &PyList_Type, &slots, &filter, &filter_bytes, &places, &place_count,
                          &max_open_files, &max_processes, &pages, &page_bytes))
        return NULL;
    if (PyList_GET_SIZE(slots) > MAX_SLOTS || strlen(tmpfs_options) >= sizeof((server *)0)->tmpfs_options ||
        strlen(trash_folder) >= sizeof((server *)0)->trash_folder ||
        (size_t)filter_bytes > sizeof((server *)0)->filter || place_count > MAX_FILTER) {
        PyErr_SetString(PyExc_ValueError, "too many slots, or too long an argument");
        return NULL;
    }
    server *s = mmap(NULL, sizeof(server), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (s == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    madvise(s, sizeof(server), MADV_NOHUGEPAGE);
    s->pid = getpid(), s->ctl = ctl, s->outputs = outputs, s->flags = flags, s->uid_base = uid_base, s->next_id = 1;
    s->landlock_access = landlock_access, s->max_open_files = max_open_files, s->max_processes = max_processes;
    s->slots = PyList_GET_SIZE(slots);
    strcpy(s->tmpfs_options, tmpfs_options);
    strcpy(s->trash_folder, trash_folder);
    memcpy(s->filter, filter, filter_bytes);
    memcpy(s->pid_places, places, place_count);
    s->filter_length = filter_bytes / sizeof(struct sock_filter), s->pid_count = place_count;
    for (uint32_t i = 0; i < s->slots; i++) {
        slot *it = &s->slot[i];
        const char *root, *box;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(slots, i), "ssiii", &root, &box, &it->ruleset, &it->cgroups[0],
                              &it->cgroups[1]))
            return NULL;
        if (strlen(root) >= sizeof it->root || strlen(box) >= sizeof it->box) {
            PyErr_SetString(PyExc_ValueError, "a slot's path is too long");
            return NULL;
        }
        strcpy(it->root, root);
        strcpy(it->box, box);
        snprintf(it->work, sizeof it->work, "%s/work", box);
        snprintf(it->tmp, sizeof it->tmp, "%s/tmp", box);
    }
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    s->signals = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    if (s->signals < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    s->polled[0] = (struct pollfd){ctl, POLLIN, 0};
    s->polled[1] = (struct pollfd){s->signals, POLLIN, 0};
    for (;;) {
        if (CALL(SYS_ppoll, s->polled, 2, 0, 0, 0) < 0)
            continue;
        if (s->polled[1].revents)
            CALL(SYS_read, s->signals, &s->signal, sizeof s->signal, 0, 0);
        if (s->polled[0].revents)
            obey(s);
        if (reap(s) || grow(s)) { /* in a child */
            if (CALL(SYS_recvfrom, 3, &s->command, 1, MSG_PEEK | MSG_DONTWAIT, 0) == -EAGAIN)
                for (Py_ssize_t i = 0; i < page_bytes / 8; i++) {
                    volatile char *page = (volatile char *)((uintptr_t *)pages)[i];
                    *page = *page;
                }
            Py_RETURN_NONE;
        }
    }
}

static PyMethodDef methods[] = {
    {"flatten", forkserver_flatten, METH_VARARGS, "flatten(proc_fd) -> how many ranges were moved into huge pages"},
    {"fill_heap", forkserver_fill_heap, METH_NOARGS, "fill_heap() -> bytes used up"},
    {"immortalize", forkserver_immortalize, METH_O, "immortalize(list) -> how many objects were reached"},
    {"fork_and_wait", forkserver_fork_and_wait, METH_NOARGS, "fork_and_wait() -> True in the child, False after its end"},
    {"serve", forkserver_serve, METH_VARARGS,
     "serve(ctl, outputs, flags, uid_base, landlock_access, tmpfs_options, trash_folder, slots, filter, pid_places, max_open_files,\n"
     "      max_processes, pages)\n\n"
     "slots: [(root, box, ruleset fd, cgroup fd, cgroup fd)], -1 for a descriptor that is not there.\n"
     "pages: addresses (native 64 bit) that every call writes to: touched by a child that nobody waits for.\n"
     "Returns in each child, confined, with its channel at descriptor 3. Never returns in the parent."},
    {0},
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_forkserver", NULL, -1, methods};

PyMODINIT_FUNC PyInit__forkserver(void)
{
    return PyModule_Create(&module);
}
