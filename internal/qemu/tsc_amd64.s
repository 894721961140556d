#include "textflag.h"

// func readTSC() uint64
//
// LFENCE before: what is measured has happened. LFENCE after: what follows has
// not begun.
TEXT ·readTSC(SB), NOSPLIT, $0-8
	LFENCE
	RDTSC
	LFENCE
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET
