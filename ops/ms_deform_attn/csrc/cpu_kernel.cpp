// Multi-scale deformable attention on the CPU, compiled once per instruction set (-DLOCAP_MSDA_ISA=base, v3, v4).
//
// The heads of `value` lie interleaved, [S, M, D], so that the rows of one head fall into few cache sets. Each head is
// therefore first copied to a buffer of its own, in the type of the sums, its rows padded to whole vectors and every
// level surrounded by a border of zeros: a sample then needs no test and no conversion, and a sample that does not count
// is sent to a stretch of zeros. Queries are worked on in small tiles of the picture, level by level, so that their
// samples share the nearest cache.
//
// Only built-ins of the compiler are used here: an inline function of the standard library, compiled for one instruction
// set, could be linked into the code for another.
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace locap_msda {

#define NAMED_(isa) kernels_##isa
#define NAMED(isa) NAMED_(isa)
Kernels NAMED(LOCAP_MSDA_ISA)() { return {forward, backward}; }

}  // namespace locap_msda
