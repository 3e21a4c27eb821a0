// Preloaded into the tests: all memory comes from one file, which an emulated process maps at the same address. So
// what the tests hold can be handed to kernels of another architecture by its address. Compile with -fno-builtin, or
// calloc is made to call itself.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BEGIN ((char *)0x10000000000) // as in server.py
#define SIZE (64ull << 30)            // sparse

// Blocks of 2^k bytes, the last ones given back first. In front of what is handed out stands k.
enum { HEADER = 64, SMALLEST = 7, N_SIZES = 48 };
static char *next_block;
static void *given_back[N_SIZES];
static pthread_mutex_t one_call = PTHREAD_MUTEX_INITIALIZER;

static void map_arena(void) {
    // Processes that the tests start find it taken, and have memory of their own.
    int file = open(getenv("M7B_ARENA"), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
    if (file >= 0 && ftruncate(file, SIZE)) abort();
    if (mmap(BEGIN, SIZE, PROT_READ | PROT_WRITE, flags | MAP_FIXED, file, 0) != BEGIN) abort();
    next_block = BEGIN;
}

static int size_of(size_t n) {
    int k = SMALLEST;
    while ((1ull << k) < n + HEADER) k++;
    return k;
}

void *malloc(size_t n) {
    int k = size_of(n);
    pthread_mutex_lock(&one_call);
    if (!next_block) map_arena();
    char *block = given_back[k];
    if (block) {
        given_back[k] = *(void **)(block + HEADER);
    } else if (next_block + (1ull << k) > BEGIN + SIZE) {
        abort();
    } else {
        block = next_block;
        next_block += 1ull << k;
    }
    pthread_mutex_unlock(&one_call);
    *(int *)(block + HEADER - sizeof(int)) = k;
    *(uint32_t *)(block + HEADER - 8) = 0; // bytes from here back to the header's end
    return block + HEADER;
}

static char *block_of(void *memory) { return (char *)memory - HEADER - *(uint32_t *)((char *)memory - 8); }
static int size_class(void *memory) { return *(int *)((char *)memory - 4); }

size_t malloc_usable_size(void *memory) {
    return memory ? (1ull << size_class(memory)) - ((char *)memory - block_of(memory)) : 0;
}

void free(void *memory) {
    if (!memory) return;
    int k = size_class(memory);
    char *block = block_of(memory);
    pthread_mutex_lock(&one_call);
    *(void **)(block + HEADER) = given_back[k];
    given_back[k] = block;
    pthread_mutex_unlock(&one_call);
}

void *calloc(size_t n, size_t each) {
    if (each && n > SIZE / each) return NULL;
    void *memory = malloc(n * each);
    return memset(memory, 0, n * each);
}

void *realloc(void *memory, size_t n) {
    if (memory && n <= malloc_usable_size(memory)) return memory;
    void *larger = malloc(n);
    if (memory) memcpy(larger, memory, malloc_usable_size(memory)), free(memory);
    return larger;
}

void *aligned_alloc(size_t alignment, size_t n) {
    if (alignment <= 64) return malloc(n); // as blocks are, and so what follows a header
    char *memory = malloc(n + alignment), *aligned = (char *)(((uintptr_t)memory + alignment - 1) & -alignment);
    int k = size_class(memory);
    *(uint32_t *)(aligned - 8) = (uint32_t)(aligned - memory);
    *(int *)(aligned - 4) = k;
    return aligned;
}

void *memalign(size_t alignment, size_t n) { return aligned_alloc(alignment, n); }
void *valloc(size_t n) { return aligned_alloc(4096, n); }

int posix_memalign(void **memory, size_t alignment, size_t n) {
    *memory = aligned_alloc(alignment, n);
    return 0;
}
