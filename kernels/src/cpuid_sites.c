/* The CPUID instructions of a process, found exactly and replaced.
 *
 * The two bytes 0F A2 also occur inside other instructions, where a change would corrupt them; so the code before each pair is
 * read instruction by instruction from the start of its function, which the table that C++ unwinds by names (.eh_frame_hdr:
 * Linux Standard Base 5.0, 10.6). A pair that no instruction starts at, or outside of every function, stays as it is. Only lengths
 * are read: Intel SDM 2A, chapter 2 and appendix A. */
#define _GNU_SOURCE /* dl_iterate_phdr, memrchr */
#include "cpuid_sites.h"

#ifdef CPUID_REPLACEABLE
#include <elf.h>
#include <link.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* What follows an opcode, by its high and its low four bits. m: ModRM. b w z v: an immediate of 1, 2, 4 (2 after 66) bytes, of
 * the operand's size. B Z: ModRM and immediate. f F: an immediate only for TEST. o: an address of 8 bytes. d: 4 bytes.
 * e: ENTER's 3. p R: prefix, REX. 2 3 0: the next map. V W E: VEX of two and three bytes, EVEX. x: no instruction. */
static const char *const ONE_BYTE[16] = {"mmmmbzxxmmmmbzx0", "mmmmbzxxmmmmbzxx", "mmmmbzpxmmmmbzpx", "mmmmbzpxmmmmbzpx",
                                         "RRRRRRRRRRRRRRRR", "................", "xxEmppppzZbB....", "bbbbbbbbbbbbbbbb",
                                         "BZxBmmmmmmmmmmmm", "..........x.....", "oooo....bz......", "bbbbbbbbvvvvvvvv",
                                         "BBw.WVBZe.w..bx.", "mmmmxxx.mmmmmmmm", "bbbbbbbbddxb....", "p.pp..fF......mm"};
static const char *const TWO_BYTES[16] = {"mmmmx.....x.xm.B", "mmmmmmmmmmmmmmmm", "mmmmxxxxmmmmmmmm", "......x.2x3xxxxx",
                                          "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm", "BBBBmmm.mmmmmmmm",
                                          "dddddddddddddddd", "mmmmmmmmmmmmmmmm", "...mBmxx...mBmmm", "mmmmmmmmmmBmmmmm",
                                          "mmBmBBBm........", "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm", "mmmmmmmmmmmmmmmm"};

static size_t modrm_bytes(const uint8_t *at)
{
    unsigned mode = at[0] >> 6, rm = at[0] & 7;
    size_t bytes = mode == 3 || rm != 4 ? 1 : 2;
    if (mode == 1) return bytes + 1;
    if (mode == 2 || (mode == 0 && (rm == 5 || (rm == 4 && (at[1] & 7) == 5)))) return bytes + 4;
    return bytes;
}

/* Bytes of the instruction that starts at `start`; 1 where none does. */
static size_t instruction_bytes(const uint8_t *start)
{
    const uint8_t *at = start;
    int short_operand = 0, wide = 0;
    char kind = 0;
    if (start[0] == HALT && start[1] == CPUID_SECOND) return 2; /* replaced before */
    for (;; at++) {
        kind = ONE_BYTE[*at >> 4][*at & 15];
        if (kind == 'p') short_operand |= *at == 0x66, wide = 0;
        else if (kind == 'R') wide = *at >> 3 & 1;
        else break;
        if (at - start > 14) return 1;
    }
    unsigned map = kind == 'V' ? 1 : kind == 'W' ? at[1] & 31u : kind == 'E' ? at[1] & 7u : 0;
    if (map) {
        at += kind == 'V' ? 2 : kind == 'W' ? 3 : 4;
        kind = map == 1 ? TWO_BYTES[*at >> 4][*at & 15] : map == 3 ? 'B' : 'm';
    } else if (kind == '0') {
        at++;
        kind = TWO_BYTES[*at >> 4][*at & 15];
        if (kind == '2' || kind == '3') kind = kind == '2' ? 'm' : 'B', at++;
    }
    at++; /* past the opcode */
    size_t immediate = short_operand ? 2 : 4;
    size_t bytes = (size_t)(at - start);
    switch (kind) {
    case 'm': return bytes + modrm_bytes(at);
    case 'b': return bytes + 1;
    case 'w': return bytes + 2;
    case 'e': return bytes + 3;
    case 'd': return bytes + 4;
    case 'o': return bytes + 8;
    case 'z': return bytes + immediate;
    case 'v': return bytes + (wide ? 8 : immediate);
    case 'B': return bytes + modrm_bytes(at) + 1;
    case 'Z': return bytes + modrm_bytes(at) + immediate;
    case 'f': return bytes + modrm_bytes(at) + ((at[0] & 0x38) < 0x10);
    case 'F': return bytes + modrm_bytes(at) + ((at[0] & 0x38) < 0x10 ? immediate : 0);
    case '.': return bytes;
    default: return 1;
    }
}

/* The sorted table of an object's functions: pairs of offsets from its head, of the function's first byte and of its record. */
typedef struct {
    const uint8_t *head;
    const int32_t (*rows)[2];
    size_t count;
} functions;

static functions functions_of(const struct dl_phdr_info *object)
{
    functions found = {0, 0, 0};
    for (size_t i = 0; i < object->dlpi_phnum; i++) {
        if (object->dlpi_phdr[i].p_type != PT_GNU_EH_FRAME) continue;
        const uint8_t *head = (const uint8_t *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
        /* Version 1; a pointer of 4 bytes; a count of 4; rows of 4-byte offsets from the head: what every linker writes. */
        if (head[0] != 1 || (head[1] & 15) != 11 || head[2] != 3 || head[3] != 0x3B) break;
        uint32_t count;
        memcpy(&count, head + 8, sizeof count);
        found = (functions){head, (const int32_t(*)[2])(const void *)(head + 12), count};
    }
    return found;
}

/* Where the function starts that the place lies in; 0 outside of all. */
static const uint8_t *function_around(functions all, const uint8_t *place)
{
    size_t low = 0, high = all.count; /* rows below `low` start at or before the place */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (all.head + all.rows[middle][0] <= place) low = middle + 1;
        else high = middle;
    }
    if (!low) return 0;
    const uint8_t *start = all.head + all.rows[low - 1][0], *record = all.head + all.rows[low - 1][1];
    /* The record: length, offset of its shared part, first byte relative to this field, bytes; what other encodings hold differs. */
    int32_t first;
    uint32_t bytes;
    memcpy(&first, record + 8, sizeof first);
    memcpy(&bytes, record + 12, sizeof bytes);
    return record + 8 + first == start && (size_t)(place - start) < bytes ? start : 0;
}

static int starts_instruction(functions all, const uint8_t *place)
{
    const uint8_t *at = function_around(all, place);
    if (!at) return 0;
    while (at < place) at += instruction_bytes(at);
    return at == place;
}

int hwq_code_write(const uint8_t *place, uint8_t value)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *start = (void *)((uintptr_t)place & ~(page - 1));
    if (mprotect(start, page, PROT_READ | PROT_WRITE | PROT_EXEC)) return -1;
    *(volatile uint8_t *)(uintptr_t)place = value;
    return mprotect(start, page, PROT_READ | PROT_EXEC);
}

/* Objects stand in the order in which they came; after one went, all are read again. */
typedef struct {
    size_t index, known;
    unsigned long long gone;
} reading;
static reading last;

static int replace_in(struct dl_phdr_info *object, size_t size, void *context)
{
    (void)context, (void)size;
    if (last.gone != object->dlpi_subs) last.gone = object->dlpi_subs, last.known = 0;
    if (last.index++ < last.known) return 0;
    functions all = functions_of(object);
    for (size_t i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &object->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD || !(segment->p_flags & PF_X) || segment->p_filesz < 2) continue;
        const uint8_t *begin = (const uint8_t *)(object->dlpi_addr + segment->p_vaddr), *end = begin + segment->p_filesz;
        for (const uint8_t *at = begin + 1; at < end && (at = memchr(at, CPUID_SECOND, (size_t)(end - at))); at++)
            if (at[-1] == CPUID_FIRST && at - 1 != hwq_cpuid_real && starts_instruction(all, at - 1)) hwq_code_write(at - 1, HALT);
    }
    return 0;
}

void hwq_cpuid_replace(void)
{
    last.index = 0;
    dl_iterate_phdr(replace_in, 0);
    last.known = last.index;
}
#endif
