/* The harness, and the main program: `check [--brief] [--only PATH...]` runs every check, `check --time` times every path. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "check.h"

#include <sys/mman.h>
#include <unistd.h>

enum { CANARY = 64 };
uint64_t check_seed = 1;
int check_brief;
static unsigned wanted = ~0u; /* bits: paths */
static long checks, failures;
static const char *current_op = "";
static int current_path;

void fill_bytes(void *to, int64_t n, int how)
{
    unsigned char *bytes = to;
    for (int64_t i = 0; i < n; i++) {
        const unsigned char shapes[FILLS] = {(unsigned char)draw(), 0x80, 0xFF, i & 1 ? 0x80 : 0x7F, i & 1 ? 0xFF : 0x00};
        bytes[i] = shapes[how];
    }
}

guarded guard(size_t bytes, size_t shift)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (CANARY + bytes + shift + page - 1) / page * page;
    guarded g = {.length = body + page, .bytes = bytes};
    g.pages = mmap(NULL, g.length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.pages == MAP_FAILED || mprotect(g.pages + body, page, PROT_NONE) != 0) {
        fprintf(stderr, "no memory for a guarded buffer\n");
        exit(2);
    }
    memset(g.pages, 0xA5, body);
    g.data = g.pages + body - bytes - shift;
    return g;
}

void check_guard(const guarded *g)
{
    const unsigned char *before = (const unsigned char *)g->data - CANARY;
    const unsigned char *after = (const unsigned char *)g->data + g->bytes;
    const unsigned char *end = (const unsigned char *)g->pages + g->length - (size_t)sysconf(_SC_PAGESIZE);
    int whole = 1;
    for (int i = 0; i < CANARY; i++) whole &= before[i] == 0xA5;
    for (; after < end; after++) whole &= *after == 0xA5;
    check_true(whole, "bytes around a buffer stay as they were");
    munmap(g->pages, g->length);
}

int check_wanted(int path) { return wanted >> path & 1; }

void check_begin(const char *op, int path)
{
    current_op = op;
    current_path = path;
    check_seed = 88172645463325252u;
}

void check_true(int condition, const char *what)
{
    checks++;
    if (condition) return;
    if (++failures <= 20) fprintf(stderr, "FAIL %s on %s: %s\n", current_op, hwq_path_name(current_path), what);
}

void check_equal(const void *got, const void *want, size_t bytes, const char *what)
{
    const unsigned char *a = got, *b = want;
    size_t i = 0;
    while (i < bytes && a[i] == b[i]) i++;
    if (i < bytes && failures < 20) fprintf(stderr, "first difference at byte %zu of %zu\n", i, bytes);
    check_true(i == bytes, what);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--time") == 0) {
        time_ops();
        return 0;
    }
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--brief") == 0) check_brief = 1;
        else if (strcmp(argv[i], "--only") == 0) wanted = 0;
        else if (hwq_path_find(argv[i]) >= 0 && hwq_path_available(hwq_path_find(argv[i]))) wanted |= 1u << hwq_path_find(argv[i]);
        else return fprintf(stderr, "not a path of this CPU: %s\n", argv[i]), 2;
    }
    printf("paths:");
    for (int path = 0; path < hwq_path_count(); path++)
        if (check_wanted(path) && hwq_path_available(path)) printf(" %s", hwq_path_name(path));
    printf("\n");
    void (*const files[])(void) = {check_paths, check_gemm, check_s4, check_f32s8, check_float, check_requantize, check_window, check_elementwise, check_int16, check_half, check_program, check_modes, check_state};
    const char *const names[] = {"paths", "gemm", "s4", "f32s8", "float", "requantize", "window", "elementwise", "int16", "half", "program", "modes", "state"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const long before = checks;
        files[i]();
        printf("%-12s %7ld checks\n", names[i], checks - before);
    }
    printf("%ld checks, %ld failed\n", checks, failures);
    return failures != 0;
}
