/* The dispatch table: ref has everything, what a path lacks comes from its parent, what is not there is refused. */
#include "check.h"

void check_paths(void)
{
    check_begin("paths", 0);
    check_true(hwq_path_available(hwq_path_find("ref")), "ref is always available");
    check_true(hwq_path_find("mmx") == -1 && hwq_path_find(NULL) == -1, "unknown names are refused");
    check_true(hwq_path_name(-1) == NULL && hwq_path_name(hwq_path_count()) == NULL, "numbers outside are refused");
    check_true(hwq_path_choose(hwq_path_count()) == -1, "a path outside cannot be chosen");
    for (int op = 0; op < hwq_op_count(); op++) check_true(hwq_op_present(op, 0) == 1, "ref has every op");
    check_true(hwq_op_present(hwq_op_count(), 0) == -1, "ops outside are refused");
    for (int path = 0; path < hwq_path_count(); path++) {
        if (hwq_path_choose(path) != 0) {
            check_true(!hwq_path_available(path), "an available path can be chosen");
            continue;
        }
        check_true(hwq_path_chosen() == path, "the chosen path is the one asked for");
    }
}

/* The state's guard: whatever the caller computes in, the kernels see the default, and the caller's comes back. */
#include "state.h"

void check_state(void)
{
    const uint64_t before = hwq_state_read();
    check_begin("state", 0);
#if HWQ_X86
    const uint64_t hostile[] = {0x3F80, 0x5F80, 0x7F80, 0x9FC0, 0xFFC0};
#elif HWQ_ARM
    const uint64_t hostile[] = {1u << 22, 2u << 22, 3u << 22, 1u << 24, 1u << 25};
#else
    const uint64_t hostile[] = {0};
#endif
    volatile float tiny = 1e-30f, smaller = 1e-10f, one = 1.0f, sliver = 0x1p-25f;
    const float product = tiny * smaller, up = one + sliver;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        hwq_state_write(hostile[i]);
        const uint64_t asked = hwq_state_read(), state = hwq_state_enter();
        const float inside = tiny * smaller, sum = one + sliver;
        hwq_state_leave(state);
        const uint64_t after = hwq_state_read();
        hwq_state_write(before);
        check_true(after == asked, "the caller's state comes back");
        check_true(memcmp(&inside, &product, 4) == 0 && memcmp(&sum, &up, 4) == 0, "inside, arithmetic is the default one");
    }
}
